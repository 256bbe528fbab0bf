/* Products of a sparse matrix with a batch of activations on the CPU, and what stands between two of them.
 *
 * Activations are feature-major: x is (n_in, batch) with the batch innermost, so that one connection moves one contiguous row. W is (n_out, n_in)
 * in rows: the entries of row i are value[p], col[p] for p from crow[i], or i * fan_in where crow is NULL. Wᵀ is an index into the same values:
 * t_row and t_pos, ordered by (panel of rows, column, row), so that a panel of output gradients and its stretch of values stay near the core.
 *
 * A batch is cut into tiles of 64, 32 or 16 columns. A tile that is not the whole batch is packed into scratch first: rows a batch apart would
 * fall into few cache sets. Every output element is summed by one thread in a fixed order: results do not depend on timing.
 * No headers but the C library's and OpenMP's: one build serves every Python and every torch.
 */
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#define omp_get_num_threads() 1
#endif

#if defined(__x86_64__) && defined(__linux__) && !defined(SF_ONE_TARGET)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define INLINE static inline __attribute__((always_inline))
#define LANES 16
#define SERIAL 100000 /* multiplications that are not worth a second thread */
#define AHEAD_ROWS 8  /* connections whose activations are fetched ahead */
#define AHEAD_VALUES 48

typedef float vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t lanes __attribute__((vector_size(64)));
#define AT(pointer) (*(vec *)(pointer))
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (lanes){__VA_ARGS__})
#endif

typedef struct {
    int64_t n_out, n_in, fan_in, panels;
    const int32_t *crow, *col, *t_ptr, *t_row, *t_pos;
} matrix;

INLINE int64_t row_begin(const matrix *m, int64_t i) { return m->crow ? m->crow[i] : i * m->fan_in; }

INLINE vec load_part(const float *from, int n) {
    vec v = {0};
    memcpy(&v, from, n * sizeof(float));
    return v;
}

/* First row of thread t of n if every thread gets about as many entries. */
static int64_t share_of_rows(const matrix *m, int t, int n) {
    if (!m->crow) return m->n_out * t / n;
    int64_t wanted = (int64_t)m->crow[m->n_out] * t / n, low = 0, high = m->n_out;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (m->crow[middle] < wanted) low = middle + 1;
        else high = middle;
    }
    return t == n ? m->n_out : low;
}

static int64_t entries_before(const matrix *m, int64_t j) {
    int64_t n = 0;
    for (int64_t p = 0; p < m->panels; p++) n += m->t_ptr[p * m->n_in + j] - m->t_ptr[p * m->n_in];
    return n;
}

static int64_t share_of_columns(const matrix *m, int t, int n) {
    if (t == 0 || t == n) return t ? m->n_in : 0;
    int64_t wanted = entries_before(m, m->n_in) * t / n, low = 0, high = m->n_in;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (entries_before(m, middle) < wanted) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Sums of 16 vectors, in order: halves are added pairwise, so that 15 additions of whole vectors give 16 sums. */
INLINE vec sums_of_16(const vec *d) {
    vec s[8];
#define PAIRS(from, half, low, high) \
    _Pragma("GCC unroll 8") for (int i = 0; i < half; i++) { vec a = from[i], b = from[i + half]; s[i] = low + high; }
    PAIRS(d, 8, SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
          SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
    PAIRS(s, 4, SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
          SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
    PAIRS(s, 2, SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
          SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
    PAIRS(s, 1, SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
          SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
#undef PAIRS
    return s[0];
}

/* One batch tile: `count` of nv * 16 columns are there. Rows of x and of dy lie `stride` floats apart, those of the others `batch`. */
typedef struct {
    const float *x, *dy, *value, *bias;
    float *y, *dx, *dvalue;
    int64_t stride, batch;
    int count, add;
} tile;

INLINE void store(float *to, const vec *v, int nv, int count) {
    _Pragma("GCC unroll 4") for (int c = 0; c < nv; c++) {
        int n = count - c * LANES;
        if (n >= LANES) AT(to + c * LANES) = v[c];
        else if (n > 0) memcpy(to + c * LANES, &v[c], n * sizeof(float));
    }
}

INLINE void fetch(const float *row, int nv) {
    _Pragma("GCC unroll 4") for (int c = 0; c < nv; c++) __builtin_prefetch(row + c * LANES);
}

INLINE void forward_tile(const matrix *m, const tile *t, int64_t first, int64_t last, int nv) {
    const int32_t *col = m->col;
    const int64_t stride = t->stride, final = row_begin(m, last) - 1;
    const float *x = t->x, *value = t->value;
    for (int64_t i = first, p = row_begin(m, first); i < last; i++) {
        vec sum[4];
        _Pragma("GCC unroll 4") for (int c = 0; c < nv; c++) sum[c] = (vec){0} + (t->bias ? t->bias[i] : 0.0f);
        for (int64_t end = row_begin(m, i + 1); p < end; p++) {
            int64_t ahead = p + AHEAD_ROWS < final ? p + AHEAD_ROWS : final;
            fetch(x + col[ahead] * stride, nv);
            const float *row = x + col[p] * stride;
            _Pragma("GCC unroll 4") for (int c = 0; c < nv; c++) sum[c] += value[p] * AT(row + c * LANES);
        }
        store(t->y + i * t->batch, sum, nv, t->count);
    }
}

CLONES static void forward_range(const matrix *m, const tile *t, int64_t first, int64_t last, int nv) {
    if (nv == 4) forward_tile(m, t, first, last, 4);
    else if (nv == 2) forward_tile(m, t, first, last, 2);
    else forward_tile(m, t, first, last, 1);
}

/* dvalue of 16 connections whose products lie in d. */
INLINE void write_16(const tile *t, const int32_t *pos, const vec *d, int n) {
    float sum[LANES] __attribute__((aligned(64)));
    *(vec *)sum = sums_of_16(d);
    if (t->add)
        for (int i = 0; i < n; i++) t->dvalue[pos[i]] += sum[i];
    else
        for (int i = 0; i < n; i++) t->dvalue[pos[i]] = sum[i];
}

/* Both gradients with one fetch of dy: column j's x and dx stay in registers, and 16 scalar products are added up together. */
INLINE void backward_tile(const matrix *m, const tile *t, int64_t first, int64_t last, int nv) {
    const int32_t *t_row = m->t_row, *t_pos = m->t_pos;
    const int64_t stride = t->stride, nnz = m->t_ptr[m->panels * m->n_in];
    const float *dy = t->dy, *value = t->value;
    float *dvalue = t->dvalue;
    vec d[LANES];
    for (int64_t panel = 0; panel < m->panels; panel++) {
        const int32_t *ptr = m->t_ptr + panel * m->n_in;
        int64_t p = ptr[first];
        int n = 0;
        for (int64_t j = first; j < last; j++) {
            vec x[4], dx[4];
            float *to = t->dx + j * t->batch;
            _Pragma("GCC unroll 4") for (int c = 0; c < nv; c++) {
                int here = t->count - c * LANES;
                const float *from = t->x + j * t->batch + c * LANES;
                x[c] = here >= LANES ? AT(from) : load_part(from, here < 0 ? 0 : here);
                dx[c] = !panel ? (vec){0} : here >= LANES ? AT(to + c * LANES) : load_part(to + c * LANES, here < 0 ? 0 : here);
            }
            for (int64_t end = ptr[j + 1]; p < end; p++) {
                int64_t ahead = p + AHEAD_ROWS < nnz ? p + AHEAD_ROWS : p, far = p + AHEAD_VALUES < nnz ? p + AHEAD_VALUES : p;
                fetch(dy + t_row[ahead] * stride, nv);
                __builtin_prefetch(value + t_pos[far]);
                __builtin_prefetch(dvalue + t_pos[far], 1);
                const float *row = dy + t_row[p] * stride;
                float w = value[t_pos[p]];
                vec product = {0};
                _Pragma("GCC unroll 4") for (int c = 0; c < nv; c++) {
                    vec g = AT(row + c * LANES);
                    dx[c] += w * g;
                    product += g * x[c];
                }
                d[n] = product;
                if (++n == LANES) {
                    write_16(t, t_pos + p - (LANES - 1), d, LANES);
                    n = 0;
                }
            }
            store(to, dx, nv, t->count);
        }
        if (n) write_16(t, t_pos + p - n, d, n);
    }
}

CLONES static void backward_range(const matrix *m, const tile *t, int64_t first, int64_t last, int nv) {
    if (nv == 4) backward_tile(m, t, first, last, 4);
    else if (nv == 2) backward_tile(m, t, first, last, 2);
    else backward_tile(m, t, first, last, 1);
}

/* Rows [first, last) of `from`, `count` columns each, into rows of `width` floats, zeros behind. */
static void pack(const float *from, int64_t batch, int64_t first, int64_t last, int count, int width, float *to) {
    for (int64_t j = first; j < last; j++) {
        memcpy(to + j * width, from + j * batch, count * sizeof(float));
        if (count < width) memset(to + j * width + count, 0, (width - count) * sizeof(float));
    }
}

INLINE int tile_width(int64_t left) { return left > 32 ? 64 : left > 16 ? 32 : 16; }

/* y = W x + bias. scratch: n_in * 64 floats, or NULL where the batch is one whole tile. */
void sf_forward(const matrix *m, int64_t batch, const float *value, const float *bias, const float *x, float *y, float *scratch, int threads) {
    int64_t nnz = row_begin(m, m->n_out);
#pragma omp parallel num_threads(threads) if (nnz * batch > SERIAL)
    {
        int me = omp_get_thread_num(), n = omp_get_num_threads();
        int64_t first = share_of_rows(m, me, n), last = share_of_rows(m, me + 1, n);
        for (int64_t b = 0; b < batch;) {
            int width = tile_width(batch - b), count = batch - b < width ? batch - b : width;
            int whole = batch == width;
            if (!whole) {
#pragma omp barrier
                pack(x + b, batch, m->n_in * me / n, m->n_in * (me + 1) / n, count, width, scratch);
#pragma omp barrier
            }
            tile t = {.x = whole ? x : scratch, .value = value, .bias = bias, .y = y + b, .stride = width, .batch = batch, .count = count};
            forward_range(m, &t, first, last, width / LANES);
            b += count;
        }
    }
}

/* dx = Wᵀ dy and dvalue = the entries of dy xᵀ where W has some. scratch: n_out * 64 floats, or NULL where the batch is one whole tile. */
void sf_backward(const matrix *m, int64_t batch, const float *value, const float *x, const float *dy, float *dx, float *dvalue, float *scratch,
                 int threads) {
    int64_t nnz = row_begin(m, m->n_out);
#pragma omp parallel num_threads(threads) if (nnz * batch > SERIAL)
    {
        int me = omp_get_thread_num(), n = omp_get_num_threads();
        int64_t first = share_of_columns(m, me, n), last = share_of_columns(m, me + 1, n);
        for (int64_t b = 0; b < batch;) {
            int width = tile_width(batch - b), count = batch - b < width ? batch - b : width;
            int whole = batch == width;
            if (!whole) {
#pragma omp barrier
                pack(dy + b, batch, m->n_out * me / n, m->n_out * (me + 1) / n, count, width, scratch);
#pragma omp barrier
            }
            tile t = {.x = x + b, .dy = whole ? dy : scratch, .value = value, .dx = dx + b, .dvalue = dvalue,
                      .stride = width, .batch = batch, .count = count, .add = b > 0};
            if (last > first) backward_range(m, &t, first, last, width / LANES);
            b += count;
        }
    }
}

/* Up to four columns: rows in order, so that values and indices stream; every thread adds into a dx of its own. */
INLINE void forward_few(const matrix *m, const float *value, const float *bias, const float *x, float *y, int64_t first, int64_t last, int b) {
    for (int64_t i = first, p = row_begin(m, first); i < last; i++) {
        float even[4] = {0}, odd[4] = {0};
        int64_t end = row_begin(m, i + 1);
        for (; p + 2 <= end; p += 2)
            _Pragma("GCC unroll 4") for (int c = 0; c < b; c++) {
                even[c] += value[p] * x[(int64_t)m->col[p] * b + c];
                odd[c] += value[p + 1] * x[(int64_t)m->col[p + 1] * b + c];
            }
        for (; p < end; p++)
            for (int c = 0; c < b; c++) even[c] += value[p] * x[(int64_t)m->col[p] * b + c];
        for (int c = 0; c < b; c++) y[i * b + c] = even[c] + odd[c] + (bias ? bias[i] : 0.0f);
    }
}

CLONES static void forward_few_range(const matrix *m, const float *value, const float *bias, const float *x, float *y, int64_t first,
                                     int64_t last, int b) {
    if (b == 1) forward_few(m, value, bias, x, y, first, last, 1);
    else if (b == 2) forward_few(m, value, bias, x, y, first, last, 2);
    else if (b == 3) forward_few(m, value, bias, x, y, first, last, 3);
    else forward_few(m, value, bias, x, y, first, last, 4);
}

INLINE void backward_few(const matrix *m, const float *value, const float *x, const float *dy, float *dx, float *dvalue, int64_t first,
                         int64_t last, int b) {
    for (int64_t i = first, p = row_begin(m, first); i < last; i++) {
        const float *g = dy + i * b;
        for (int64_t end = row_begin(m, i + 1); p < end; p++) {
            int64_t at = (int64_t)m->col[p] * b;
            float sum = 0;
            _Pragma("GCC unroll 4") for (int c = 0; c < b; c++) {
                sum += g[c] * x[at + c];
                dx[at + c] += value[p] * g[c];
            }
            dvalue[p] = sum;
        }
    }
}

CLONES static void backward_few_range(const matrix *m, const float *value, const float *x, const float *dy, float *dx, float *dvalue,
                                      int64_t first, int64_t last, int b) {
    if (b == 1) backward_few(m, value, x, dy, dx, dvalue, first, last, 1);
    else if (b == 2) backward_few(m, value, x, dy, dx, dvalue, first, last, 2);
    else if (b == 3) backward_few(m, value, x, dy, dx, dvalue, first, last, 3);
    else backward_few(m, value, x, dy, dx, dvalue, first, last, 4);
}

void sf_forward_few(const matrix *m, int64_t batch, const float *value, const float *bias, const float *x, float *y, int threads) {
#pragma omp parallel num_threads(threads) if (row_begin(m, m->n_out) * batch > SERIAL)
    {
        int me = omp_get_thread_num(), n = omp_get_num_threads();
        forward_few_range(m, value, bias, x, y, share_of_rows(m, me, n), share_of_rows(m, me + 1, n), batch);
    }
}

/* scratch: (threads - 1) * n_in * batch floats. */
void sf_backward_few(const matrix *m, int64_t batch, const float *value, const float *x, const float *dy, float *dx, float *dvalue, float *scratch,
                     int threads) {
    int64_t n_dx = m->n_in * batch;
#pragma omp parallel num_threads(threads) if (row_begin(m, m->n_out) * batch > SERIAL)
    {
        int me = omp_get_thread_num(), n = omp_get_num_threads();
        float *own = me ? scratch + (me - 1) * n_dx : dx;
        memset(own, 0, n_dx * sizeof(float));
        backward_few_range(m, value, x, dy, own, dvalue, share_of_rows(m, me, n), share_of_rows(m, me + 1, n), batch);
#pragma omp barrier
        for (int other = 0; other < n - 1; other++)
            for (int64_t e = n_dx * me / n; e < n_dx * (me + 1) / n; e++) dx[e] += scratch[other * n_dx + e];
    }
}

/* The same in double precision, plainly: for gradient checks and for those who train in it. */
void sf_forward_f64(const matrix *m, int64_t batch, const double *value, const double *bias, const double *x, double *y, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < m->n_out; i++) {
        double *to = y + i * batch;
        for (int64_t b = 0; b < batch; b++) to[b] = bias ? bias[i] : 0.0;
        for (int64_t p = row_begin(m, i), end = row_begin(m, i + 1); p < end; p++)
            for (int64_t b = 0; b < batch; b++) to[b] += value[p] * x[m->col[p] * batch + b];
    }
}

void sf_backward_f64(const matrix *m, int64_t batch, const double *value, const double *x, const double *dy, double *dx, double *dvalue,
                     int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t j = 0; j < m->n_in; j++) {
        double *to = dx + j * batch;
        memset(to, 0, batch * sizeof(double));
        for (int64_t panel = 0; panel < m->panels; panel++) {
            const int32_t *ptr = m->t_ptr + panel * m->n_in + j;
            for (int64_t p = ptr[0]; p < ptr[1]; p++) {
                const double *row = dy + m->t_row[p] * batch;
                double sum = 0, w = value[m->t_pos[p]];
                for (int64_t b = 0; b < batch; b++) {
                    to[b] += w * row[b];
                    sum += row[b] * x[j * batch + b];
                }
                dvalue[m->t_pos[p]] = sum;
            }
        }
    }
}

/* The index of Wᵀ by counting; t_ptr, t_row and t_pos of m are written, through pointers that are not const. */
void sf_transpose_index(const matrix *m, int64_t panel_rows, int32_t *t_ptr, int32_t *t_row, int32_t *t_pos, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t panel = 0; panel < m->panels; panel++) {
        int64_t first = panel * panel_rows < m->n_out ? panel * panel_rows : m->n_out;
        int64_t last = first + panel_rows < m->n_out ? first + panel_rows : m->n_out, begin = row_begin(m, first), end = row_begin(m, last);
        int32_t *ptr = t_ptr + panel * m->n_in; /* ptr[n_in] is the next panel's first, and has the same value */
        for (int64_t j = 0; j < m->n_in; j++) ptr[j] = 0;
        for (int64_t p = begin; p < end; p++) ptr[m->col[p]]++;
        for (int64_t j = 0, at = begin; j < m->n_in; j++) {
            at += ptr[j];
            ptr[j] = at;
        }
        for (int64_t i = last - 1, p = end - 1; i >= first; i--)
            for (int64_t from = row_begin(m, i); p >= from; p--) {
                int32_t at = --ptr[m->col[p]];
                t_row[at] = i;
                t_pos[at] = p;
            }
    }
    t_ptr[m->panels * m->n_in] = row_begin(m, m->n_out);
}

static int64_t n_below(const int64_t *ascending, int64_t n, int64_t value) {
    int64_t low = 0;
    while (low < n) {
        int64_t middle = (low + n) / 2;
        if (ascending[middle] < value) low = middle + 1;
        else n = middle;
    }
    return low;
}

/* The sites of `flat` that stay and the `fresh` ones, both ascending, as one ascending list; source: position in flat, or -1. counts: threads + 1. */
void sf_merge(const int64_t *flat, const uint8_t *keep, int64_t n_flat, const int64_t *fresh, int64_t n_fresh, int64_t *out, int64_t *source,
              int64_t *counts, int threads) {
#pragma omp parallel num_threads(threads) if (n_flat > SERIAL)
    {
        int me = omp_get_thread_num(), all = omp_get_num_threads();
        int64_t first = n_flat * me / all, last = n_flat * (me + 1) / all, kept = 0;
        for (int64_t p = first; p < last; p++) kept += keep[p] != 0;
        counts[me] = kept;
        int64_t low = me ? n_below(fresh, n_fresh, flat[first]) : 0, end = me + 1 == all ? n_fresh : n_below(fresh, n_fresh, flat[last]);
#pragma omp barrier
        int64_t at = low;
        for (int other = 0; other < me; other++) at += counts[other];
        for (int64_t p = first; p < last; p++) {
            while (low < end && fresh[low] < flat[p]) {
                out[at] = fresh[low++];
                source[at++] = -1;
            }
            if (keep[p]) {
                out[at] = flat[p];
                source[at++] = p;
            }
        }
        while (low < end) {
            out[at] = fresh[low++];
            source[at++] = -1;
        }
    }
}

/* to[c][r] = from[r][c], in blocks that stay in the first cache. */
CLONES static void transpose_rows(const float *from, float *to, int64_t rows, int64_t cols, int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r += 16)
        for (int64_t c = 0; c < cols; c += 16) {
            int64_t r_end = r + 16 < last ? r + 16 : last, c_end = c + 16 < cols ? c + 16 : cols;
            for (int64_t i = c; i < c_end; i++)
                for (int64_t k = r; k < r_end; k++) to[i * rows + k] = from[k * cols + i];
        }
}

void sf_transpose(const float *from, float *to, int64_t rows, int64_t cols, int threads) {
    int by_rows = rows >= cols;
#pragma omp parallel num_threads(threads) if (rows * cols > SERIAL)
    {
        int me = omp_get_thread_num(), n = omp_get_num_threads();
        if (by_rows) transpose_rows(from, to, rows, cols, rows * me / n / 16 * 16, me + 1 == n ? rows : rows * (me + 1) / n / 16 * 16);
        else {
            int64_t first = cols * me / n / 16 * 16, last = me + 1 == n ? cols : cols * (me + 1) / n / 16 * 16;
            for (int64_t c = first; c < last; c += 16)
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t k = c; k < (c + 16 < last ? c + 16 : last); k++) to[k * rows + r] = from[r * cols + k];
        }
    }
}

/* Layer normalisation over the features of a feature-major batch, with the activation behind it: what torch would have to transpose for. */
#define BLOCK 256 /* rows that are summed in single precision before a double takes over */

INLINE float sum_of(vec v) {
    v += SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    return v[0] + v[1];
}

INLINE vec positive(vec of, vec by) { return (vec)((lanes)of & ~(lanes)(by <= 0)); } /* `of` where `by` is not below zero; NaN stays */

INLINE vec load(const float *from, int n) { return n >= LANES ? AT(from) : load_part(from, n); }

INLINE void store_part(float *to, vec v, int n) {
    if (n >= LANES) AT(to) = v;
    else memcpy(to, &v, n * sizeof(float));
}

/* total[c] += the sum over rows [first, last) of column c, or of its squared distance from mean[c]. */
CLONES static void column_sums(const float *x, int64_t batch, int64_t first, int64_t last, const float *mean, double *total) {
    for (int64_t c = 0; c < batch; c += LANES) {
        int n = batch - c < LANES ? batch - c : LANES;
        vec centre = mean ? load(mean + c, n) : (vec){0};
        for (int64_t from = first; from < last; from += BLOCK) {
            vec sum = {0};
            for (int64_t r = from; r < (from + BLOCK < last ? from + BLOCK : last); r++) {
                vec v = load(x + r * batch + c, n) - centre;
                if (mean) sum += v * v;
                else sum += v;
            }
            for (int l = 0; l < n; l++) total[c + l] += sum[l];
        }
    }
}

CLONES static void normalise(const float *x, int64_t batch, int64_t first, int64_t last, const float *gamma, const float *beta, const float *mean,
                             const float *rstd, float *y, int relu) {
    for (int64_t r = first; r < last; r++)
        for (int64_t c = 0; c < batch; c += LANES) {
            int n = batch - c < LANES ? batch - c : LANES;
            vec v = (load(x + r * batch + c, n) - load(mean + c, n)) * load(rstd + c, n) * gamma[r] + beta[r];
            if (relu) v = positive(v, v);
            store_part(y + r * batch + c, v, n);
        }
}

/* partial: (threads, batch) doubles. */
void sf_norm_forward(int64_t features, int64_t batch, const float *x, const float *gamma, const float *beta, float *y, float *mean, float *rstd,
                     double *partial, float eps, int relu, int threads) {
#pragma omp parallel num_threads(threads) if (features * batch > SERIAL)
    {
        int me = omp_get_thread_num(), n = omp_get_num_threads();
        int64_t first = features * me / n, last = features * (me + 1) / n;
        for (int pass = 0; pass < 2; pass++) {
            memset(partial + me * batch, 0, batch * sizeof(double));
            column_sums(x, batch, first, last, pass ? mean : NULL, partial + me * batch);
#pragma omp barrier
#pragma omp single
            for (int64_t c = 0; c < batch; c++) {
                double sum = 0;
                for (int other = 0; other < n; other++) sum += partial[other * batch + c];
                if (pass) rstd[c] = (float)(1.0 / __builtin_sqrt(sum / features + eps));
                else mean[c] = (float)(sum / features);
            }
        }
        normalise(x, batch, first, last, gamma, beta, mean, rstd, y, relu);
    }
}

typedef struct {
    const float *x, *gamma, *beta, *mean, *rstd, *dy;
    float *dx, *dgamma, *dbeta;
    int64_t features, batch;
    int relu;
} norm;

/* dgamma, dbeta of rows [first, last), and for every column the sums of g gamma and of g gamma x_hat into total. */
CLONES static void norm_sums(const norm *a, int64_t first, int64_t last, double *total) {
    int64_t batch = a->batch;
    for (int64_t r = first; r < last; r++) a->dgamma[r] = a->dbeta[r] = 0;
    for (int64_t c = 0; c < batch; c += LANES) {
        int n = batch - c < LANES ? batch - c : LANES;
        vec mean = load(a->mean + c, n), rstd = load(a->rstd + c, n);
        for (int64_t from = first; from < last; from += BLOCK) {
            vec one = {0}, two = {0};
            for (int64_t r = from; r < (from + BLOCK < last ? from + BLOCK : last); r++) {
                vec hat = (load(a->x + r * batch + c, n) - mean) * rstd, g = load(a->dy + r * batch + c, n);
                if (a->relu) g = positive(g, hat * a->gamma[r] + a->beta[r]);
                a->dbeta[r] += sum_of(g);
                a->dgamma[r] += sum_of(g * hat);
                one += g * a->gamma[r];
                two += g * hat * a->gamma[r];
            }
            for (int l = 0; l < n; l++) {
                total[c + l] += one[l];
                total[batch + c + l] += two[l];
            }
        }
    }
}

CLONES static void norm_inputs(const norm *a, int64_t first, int64_t last, const float *average) {
    int64_t batch = a->batch;
    for (int64_t r = first; r < last; r++)
        for (int64_t c = 0; c < batch; c += LANES) {
            int n = batch - c < LANES ? batch - c : LANES;
            vec rstd = load(a->rstd + c, n), hat = (load(a->x + r * batch + c, n) - load(a->mean + c, n)) * rstd;
            vec g = load(a->dy + r * batch + c, n);
            if (a->relu) g = positive(g, hat * a->gamma[r] + a->beta[r]);
            store_part(a->dx + r * batch + c, rstd * (g * a->gamma[r] - load(average + c, n) - hat * load(average + batch + c, n)), n);
        }
}

/* partial: (threads, 2, batch) doubles; average: (2, batch) floats. */
void sf_norm_backward(int64_t features, int64_t batch, const float *x, const float *gamma, const float *beta, const float *mean, const float *rstd,
                      const float *dy, float *dx, float *dgamma, float *dbeta, double *partial, float *average, int relu, int threads) {
    norm a = {x, gamma, beta, mean, rstd, dy, dx, dgamma, dbeta, features, batch, relu};
#pragma omp parallel num_threads(threads) if (features * batch > SERIAL)
    {
        int me = omp_get_thread_num(), n = omp_get_num_threads();
        int64_t first = features * me / n, last = features * (me + 1) / n;
        memset(partial + me * 2 * batch, 0, 2 * batch * sizeof(double));
        norm_sums(&a, first, last, partial + me * 2 * batch);
#pragma omp barrier
#pragma omp single
        for (int64_t c = 0; c < 2 * batch; c++) {
            double sum = 0;
            for (int other = 0; other < n; other++) sum += partial[other * 2 * batch + c];
            average[c] = (float)(sum / features);
        }
        norm_inputs(&a, first, last, average);
    }
}

/* Sums of `n` rows of 16, 64 or 256 floats, fetched by index as the products fetch them and left in registers: what a gather can reach. */
INLINE void gather_rows(const float *table, const int32_t *index, int64_t first, int64_t last, int nv, int parts, float *out) {
    vec sum[4] = {{0}, {0}, {0}, {0}};
    int64_t final = last - 1;
    for (int64_t p = first; p < last; p++) {
        int64_t ahead = p + AHEAD_ROWS < final ? p + AHEAD_ROWS : final;
        for (int part = 0; part < parts; part++) {
            const float *row = table + ((int64_t)index[p] * parts + part) * nv * LANES;
            fetch(table + ((int64_t)index[ahead] * parts + part) * nv * LANES, nv);
            _Pragma("GCC unroll 4") for (int c = 0; c < nv; c++) sum[c] += AT(row + c * LANES);
        }
    }
    _Pragma("GCC unroll 4") for (int c = 0; c < nv; c++) AT(out + c * LANES) = sum[c];
}

CLONES static void gather_range(const float *table, const int32_t *index, int64_t first, int64_t last, int width, float *out) {
    if (width == 16) gather_rows(table, index, first, last, 1, 1, out);
    else if (width == 64) gather_rows(table, index, first, last, 4, 1, out);
    else gather_rows(table, index, first, last, 4, width / 64, out);
}

/* out: threads * 64 floats. */
void sf_gather(const float *table, const int32_t *index, int64_t n, int64_t width, float *out, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int me = omp_get_thread_num(), all = omp_get_num_threads();
        gather_range(table, index, n * me / all, n * (me + 1) / all, width, out + me * 64);
    }
}

/* `rounds` of 16 independent multiply-adds of whole vectors in registers: what the arithmetic can reach. out: threads * 64 floats. */
CLONES static void multiply_add(int64_t rounds, float *out) {
    vec sum[16], by = {0};
    by += 0.999f + out[0] * 0;
    _Pragma("GCC unroll 16") for (int c = 0; c < 16; c++) sum[c] = by * (float)c;
    for (int64_t r = 0; r < rounds; r++) _Pragma("GCC unroll 16") for (int c = 0; c < 16; c++) sum[c] = sum[c] * by + by;
    _Pragma("GCC unroll 16") for (int c = 1; c < 16; c++) sum[0] += sum[c];
    AT(out) = sum[0];
}

void sf_multiply_add(int64_t rounds, float *out, int threads) {
#pragma omp parallel num_threads(threads)
    multiply_add(rounds, out + omp_get_thread_num() * 64);
}
