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
#ifndef SF_SOURCE
#define SF_SOURCE "unknown" /* the build gives the CRC-32 of this file */
#endif
#define CHAINS 4 /* merged side by side by one thread */
#define AHEAD_ROWS 8 /* connections whose activations are fetched ahead */
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

/* Of two vectors, the halves of every group of 16, 8, 4 or 2 lanes: the first ones, and the second ones. */
#define FIRST_8(a, b) SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
#define LAST_8(a, b) SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
#define FIRST_4(a, b) SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27)
#define LAST_4(a, b) SHUFFLE(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31)
#define FIRST_2(a, b) SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define LAST_2(a, b) SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define FIRST_1(a, b) SHUFFLE(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30)
#define LAST_1(a, b) SHUFFLE(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31)

/* Sums of 16 vectors, in order: halves are added pairwise, so that 15 additions of whole vectors give 16 sums. */
INLINE vec sums_of_16(const vec *d) {
    vec s[8];
#define PAIRS(from, half) \
    _Pragma("GCC unroll 8") for (int i = 0; i < half; i++) s[i] = FIRST_##half(from[i], from[i + half]) + LAST_##half(from[i], from[i + half]);
    PAIRS(d, 8) PAIRS(s, 4) PAIRS(s, 2) PAIRS(s, 1)
#undef PAIRS
    return s[0];
}

/* 16 rows of 16 become columns. */
INLINE void turn_16(vec *v) {
#define PAIRS(half) \
    _Pragma("GCC unroll 16") for (int i = 0; i < 16; i++) if (!(i & half)) { \
        vec a = v[i], b = v[i + half]; \
        v[i] = FIRST_##half(a, b); \
        v[i + half] = LAST_##half(a, b); \
    }
    PAIRS(8) PAIRS(4) PAIRS(2) PAIRS(1)
#undef PAIRS
}

/* One batch tile: `count` of nv * 16 columns are there. What is fetched by index lies in rows of nv * 16 floats, the rest in rows of `batch`. */
typedef struct {
    const float *x, *dy, *value, *bias;
    float *y, *dx, *dvalue;
    int64_t batch;
    int count, add; /* add: to what earlier tiles gave */
} tile;

INLINE vec load(const float *from, int n) { return n >= LANES ? AT(from) : load_part(from, n < 0 ? 0 : n); }

INLINE void store(float *to, vec v, int n) {
    if (n >= LANES) AT(to) = v;
    else if (n > 0) memcpy(to, &v, n * sizeof(float));
}

/* The first line only: the processor finds the rest of a row by itself. */
INLINE void fetch(const float *row) { __builtin_prefetch(row); }

INLINE void forward_tile(const matrix *m, const tile *t, int64_t first, int64_t last, const int nv, const int full) {
    const int32_t *col = m->col;
    const int64_t nnz = row_begin(m, m->n_out), width = nv * LANES;
    const float *x = t->x, *value = t->value;
    for (int64_t i = first, p = row_begin(m, first); i < last; i++) {
        vec sum[4];
        _Pragma("GCC unroll 4") for (int c = 0; c < nv; c++) sum[c] = (vec){0} + (t->bias ? t->bias[i] : 0.0f);
        int64_t end = row_begin(m, i + 1);
        const int32_t *next = col + (end + AHEAD_ROWS <= nnz) * AHEAD_ROWS;
        for (; p < end; p++) {
            fetch(x + next[p] * width);
            const float *row = x + col[p] * width;
            _Pragma("GCC unroll 4") for (int c = 0; c < nv; c++) sum[c] += value[p] * AT(row + c * LANES);
        }
        float *to = t->y + i * t->batch;
        _Pragma("GCC unroll 4") for (int c = 0; c < nv; c++) store(to + c * LANES, sum[c], full ? LANES : t->count - c * LANES);
    }
}

#define OF_WIDTH(function, ...) \
    if (nv == 4) function(__VA_ARGS__, 4, full); \
    else if (nv == 2) function(__VA_ARGS__, 2, full); \
    else function(__VA_ARGS__, 1, full);

/* On some processors (AMD's Zen 5) the loops that fetch by index take up to twice as long at every other 256 bytes of the code. So each of them stands
   here twice, 256 bytes apart, and whoever loads the library times both (docs/decisions/0012). The results have the same bits. */
#if defined(__x86_64__) && defined(__linux__)
#define PLACED __attribute__((aligned(512)))
#define SHIFT __asm__ volatile(".skip 256, 0x90");
#else
#define PLACED
#define SHIFT
#endif
static int forward_shifted, backward_shifted;

void sf_place(int forward, int backward) { forward_shifted = forward, backward_shifted = backward; }

#define FORWARD(name, shift) \
    CLONES PLACED static void name(const matrix *m, const tile *t, int64_t first, int64_t last, int nv) { \
        const int full = 1; \
        shift OF_WIDTH(forward_tile, m, t, first, last) \
    }
FORWARD(forward_whole, )
FORWARD(forward_whole_shifted, SHIFT)

CLONES static void forward_part(const matrix *m, const tile *t, int64_t first, int64_t last, int nv) {
    const int full = 0;
    OF_WIDTH(forward_tile, m, t, first, last)
}

/* dvalue of the connections from p on whose products lie in d: at their positions, or in order. */
INLINE void write_16(float *dvalue, const int32_t *t_pos, int64_t p, const vec *d, int n, const int ordered, int add) {
    if (ordered) {
        vec sum = sums_of_16(d);
        if (add) sum += load(dvalue + p, n);
        store(dvalue + p, sum, n);
    } else {
        float sum[LANES] __attribute__((aligned(64)));
        *(vec *)sum = sums_of_16(d);
        for (int i = 0; i < n; i++) dvalue[t_pos[p + i]] = sum[i];
    }
}

/* Both gradients with one fetch of dy: column j's x and dx stay in registers, and 16 scalar products are added up together.
   ordered: value and dvalue lie in the order of the transposed index, as they do where a batch has several tiles. */
INLINE void backward_tile(const matrix *m, const tile *t, int64_t first, int64_t last, const int ordered, const int nv, const int full) {
    const int32_t *t_row = m->t_row, *t_pos = m->t_pos;
    const int64_t nnz = m->t_ptr[m->panels * m->n_in], batch = t->batch, width = nv * LANES;
    const float *dy = t->dy, *value = t->value;
    float *dvalue = t->dvalue;
    const int add = t->add, count = full ? nv * LANES : t->count;
    vec d[LANES] __attribute__((aligned(64)));
    for (int64_t panel = 0; panel < m->panels; panel++) {
        const int32_t *ptr = m->t_ptr + panel * m->n_in;
        int64_t p = ptr[first];
        int n = 0;
        for (int64_t j = first; j < last; j++) {
            vec x[4], dx[4];
            const float *from = t->x + j * batch;
            float *to = t->dx + j * batch;
            if (ordered) { /* rows a whole batch apart: the processor does not foresee them */
                fetch(from + 2 * batch);
                fetch(to + 2 * batch);
            }
            _Pragma("GCC unroll 4") for (int c = 0; c < nv; c++) {
                x[c] = load(from + c * LANES, count - c * LANES);
                dx[c] = panel ? load(to + c * LANES, count - c * LANES) : (vec){0};
            }
            int64_t end = ptr[j + 1], more = end + AHEAD_VALUES <= nnz; /* a test a column: one a connection takes half as long again */
            const int32_t *next_row = t_row + more * AHEAD_ROWS, *next_pos = t_pos + more * AHEAD_VALUES;
            for (; p < end; p++) {
                fetch(dy + next_row[p] * width);
                if (!ordered) {
                    fetch(value + next_pos[p]);
                    fetch(dvalue + next_pos[p]);
                }
                const float *row = dy + t_row[p] * width;
                float w = value[ordered ? p : t_pos[p]];
                vec product = {0};
                _Pragma("GCC unroll 4") for (int c = 0; c < nv; c++) {
                    vec g = AT(row + c * LANES);
                    dx[c] += w * g;
                    product += g * x[c];
                }
                d[n] = product;
                if (++n == LANES) {
                    write_16(dvalue, t_pos, p - (LANES - 1), d, LANES, ordered, add);
                    n = 0;
                }
            }
            _Pragma("GCC unroll 4") for (int c = 0; c < nv; c++) store(to + c * LANES, dx[c], count - c * LANES);
        }
        if (n) write_16(dvalue, t_pos, p - n, d, n, ordered, add);
    }
}

#define BACKWARD(name, shift) \
    CLONES PLACED static void name(const matrix *m, const tile *t, int64_t first, int64_t last, int nv) { \
        const int full = 1; \
        shift OF_WIDTH(backward_tile, m, t, first, last, 0) \
    }
BACKWARD(backward_whole, )
BACKWARD(backward_whole_shifted, SHIFT)

CLONES static void backward_part(const matrix *m, const tile *t, int64_t first, int64_t last, int nv) {
    const int full = 0;
    OF_WIDTH(backward_tile, m, t, first, last, 0)
}

#define ORDERED(name, shift) \
    CLONES PLACED static void name(const matrix *m, const tile *t, int64_t first, int64_t last) { \
        shift backward_tile(m, t, first, last, 1, 4, 1); \
    }
ORDERED(backward_ordered, )
ORDERED(backward_ordered_shifted, SHIFT)

CLONES static void backward_ordered_part(const matrix *m, const tile *t, int64_t first, int64_t last, int nv) {
    const int full = 0;
    OF_WIDTH(backward_tile, m, t, first, last, 1)
}

/* Rows [first, last) of `from`, `count` columns each, into rows of `width` floats, zeros behind. */
static void pack(const float *from, int64_t batch, int64_t first, int64_t last, int count, int width, float *to) {
    for (int64_t j = first; j < last; j++) {
        for (int c = 0; c < count; c += LANES) __builtin_prefetch(from + (j + 8) * batch + c);
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
            tile t = {.x = whole ? x : scratch, .value = value, .bias = bias, .y = y + b, .batch = batch, .count = count};
            if (count < width) forward_part(m, &t, first, last, width / LANES);
            else (forward_shifted ? forward_whole_shifted : forward_whole)(m, &t, first, last, width / LANES);
            b += count;
        }
    }
}

/* dx = Wᵀ dy and dvalue = the entries of dy xᵀ where W has some. scratch: NULL where the batch is one whole tile, else n_out * 64 floats, and
   2 * nnz more where it has several. */
void sf_backward(const matrix *m, int64_t batch, const float *value, const float *x, const float *dy, float *dx, float *dvalue, float *scratch,
                 int threads) {
    int64_t nnz = row_begin(m, m->n_out);
    int ordered = batch > 64;
    float *value_t = ordered ? scratch + m->n_out * 64 : NULL, *dvalue_t = ordered ? value_t + nnz : dvalue;
#pragma omp parallel num_threads(threads) if (nnz * batch > SERIAL)
    {
        int me = omp_get_thread_num(), n = omp_get_num_threads();
        int64_t first = share_of_columns(m, me, n), last = share_of_columns(m, me + 1, n);
        if (ordered)
            for (int64_t p = nnz * me / n; p < nnz * (me + 1) / n; p++) value_t[p] = value[m->t_pos[p]];
        for (int64_t b = 0; b < batch;) {
            int width = tile_width(batch - b), count = batch - b < width ? batch - b : width;
            int whole = batch == width;
            if (!whole) {
#pragma omp barrier
                pack(dy + b, batch, m->n_out * me / n, m->n_out * (me + 1) / n, count, width, scratch);
#pragma omp barrier
            }
            tile t = {.x = x + b, .dy = whole ? dy : scratch, .value = ordered ? value_t : value, .dx = dx + b, .dvalue = dvalue_t,
                      .batch = batch, .count = count, .add = b > 0};
            if (ordered && count == 64) (backward_shifted ? backward_ordered_shifted : backward_ordered)(m, &t, first, last);
            else if (ordered) backward_ordered_part(m, &t, first, last, width / LANES);
            else if (whole) (backward_shifted ? backward_whole_shifted : backward_whole)(m, &t, first, last, width / LANES);
            else backward_part(m, &t, first, last, width / LANES);
            b += count;
        }
        if (ordered) {
#pragma omp barrier
            for (int64_t p = nnz * me / n; p < nnz * (me + 1) / n; p++) dvalue[m->t_pos[p]] = dvalue_t[p];
        }
    }
}

/* A copy of the loop for each small batch b. */
#define OF_BATCH(f, ...) \
    switch (b) { \
    case 1: f(__VA_ARGS__, 1); break; \
    case 2: f(__VA_ARGS__, 2); break; \
    case 3: f(__VA_ARGS__, 3); break; \
    default: f(__VA_ARGS__, 4); \
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
    OF_BATCH(forward_few, m, value, bias, x, y, first, last);
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
    OF_BATCH(backward_few, m, value, x, dy, dx, dvalue, first, last);
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

/* Rows of the entries that stand at `position`, of which every row has fan_in: exact, for half an entry is far more than a double's rounding. */
CLONES static void rows_of(const int32_t *position, int64_t n, int64_t fan_in, int32_t *row) {
    double share = 1.0 / fan_in;
    for (int64_t k = 0; k < n; k++) row[k] = (int32_t)((position[k] + 0.5) * share);
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
        if (!m->crow) { /* one scattered store is half the time of two */
            for (int64_t p = end - 1; p >= begin; p--) t_pos[--ptr[m->col[p]]] = p;
            rows_of(t_pos + begin, end - begin, m->fan_in, t_row + begin);
            continue;
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

/* Read from the library's bytes: one that was built from another source is not used. */
const char sf_source[] = "sparsefleet kernels " SF_SOURCE;

static int64_t n_below(const int64_t *ascending, int64_t n, int64_t value) {
    int64_t low = 0;
    while (low < n) {
        int64_t middle = (low + n) / 2;
        if (ascending[middle] < value) low = middle + 1;
        else n = middle;
    }
    return low;
}

typedef struct {
    int64_t p, last, low, end, at, limit; /* positions in flat, in fresh and in what comes out; the limit is where the next chain's begins */
} chain;

/* Without branches: who comes next is a coin's toss. */
INLINE int64_t merge_next(chain *c, const int64_t *flat, const uint8_t *keep, const int64_t *fresh, int64_t *out, int32_t *source) {
    int64_t old = flat[c->p], new = fresh[c->low], take = new < old, stays = keep[c->p] != 0;
    out[c->at] = take ? new : old;
    source[c->at] = take ? -1 : (int32_t)c->p;
    c->at += take | stays;
    c->low += take;
    c->p += !take;
    return (new == old) & stays;
}

INLINE int both_left(const chain *c) { return (c->at < c->limit) & (c->p < c->last) & (c->low < c->end); }

/* The sites of `flat` that stay and the `fresh` ones, both ascending, as one ascending list; source: position in flat, or -1.
   counts: CHAINS for every thread; the first becomes how many fresh ones the thread found that stay anyway. */
void sf_merge(const int64_t *flat, const uint8_t *keep, int64_t n_flat, const int64_t *fresh, int64_t n_fresh, int64_t *out, int32_t *source,
              int64_t *counts, int threads) {
#pragma omp parallel num_threads(threads) if (n_flat > SERIAL)
    {
        int me = omp_get_thread_num() * CHAINS, all = omp_get_num_threads() * CHAINS;
        chain chains[CHAINS];
        for (int k = 0; k < CHAINS; k++) {
            chain *c = chains + k;
            c->p = n_flat * (me + k) / all;
            c->last = n_flat * (me + k + 1) / all;
            c->low = me + k ? n_below(fresh, n_fresh, c->p < n_flat ? flat[c->p] : INT64_MAX) : 0;
            c->end = me + k + 1 == all ? n_fresh : n_below(fresh, n_fresh, c->last < n_flat ? flat[c->last] : INT64_MAX);
            int64_t kept = 0;
            for (int64_t q = c->p; q < c->last; q++) kept += keep[q] != 0;
            counts[me + k] = kept;
        }
#pragma omp barrier
        for (int k = 0; k < CHAINS; k++) {
            chain *c = chains + k;
            c->at = c->low;
            for (int other = 0; other < me + k; other++) c->at += counts[other];
            c->limit = c->at + counts[me + k] + c->end - c->low;
        }
#pragma omp barrier
        int64_t twice = 0;
        chain a = chains[0], b = chains[1], c = chains[2], d = chains[3]; /* side by side, for each waits for its own last step */
        while (both_left(&a) & both_left(&b) & both_left(&c) & both_left(&d)) {
            twice += merge_next(&a, flat, keep, fresh, out, source);
            twice += merge_next(&b, flat, keep, fresh, out, source);
            twice += merge_next(&c, flat, keep, fresh, out, source);
            twice += merge_next(&d, flat, keep, fresh, out, source);
        }
        chains[0] = a, chains[1] = b, chains[2] = c, chains[3] = d;
        for (int k = 0; k < CHAINS; k++) {
            chain *c = chains + k;
            while (both_left(c)) twice += merge_next(c, flat, keep, fresh, out, source);
            for (; c->at < c->limit && c->p < c->last; c->p++) {
                out[c->at] = flat[c->p];
                source[c->at] = c->p;
                c->at += keep[c->p] != 0;
            }
            for (; c->low < c->end; c->low++) {
                out[c->at] = fresh[c->low];
                source[c->at++] = -1;
            }
            counts[me + k] = 0;
        }
        counts[me] = twice;
    }
}

/* at[k]: where sites[k] stands in flat, -1 if nowhere; both ascending. */
void sf_find(const int64_t *flat, int64_t n_flat, const int64_t *sites, int64_t n, int64_t *at, int threads) {
#pragma omp parallel num_threads(threads) if (n > SERIAL)
    {
        int me = omp_get_thread_num(), all = omp_get_num_threads();
        int64_t first = n * me / all, last = n * (me + 1) / all, p = first < last ? n_below(flat, n_flat, sites[first]) : 0;
        for (int64_t k = first; k < last; k++) {
            for (int64_t step = 1; p < n_flat && flat[p] < sites[k]; step *= 2) { /* where few are sought, in strides */
                if (p + step < n_flat && flat[p + step] < sites[k]) p += step;
                else p += 1, step = 1;
            }
            at[k] = p < n_flat && flat[p] == sites[k] ? p : -1;
        }
    }
}

/* out[i] = values[source[i]], zero where the source is -1. */
void sf_take(const int32_t *values, const int32_t *source, int64_t n, int32_t *out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (n > SERIAL)
    for (int64_t i = 0; i < n; i++) {
        int32_t grown = source[i] >> 31;
        out[i] = values[source[i] & ~grown] & ~grown;
    }
}

/* Ascending sites of rows of columns. */
void sf_sites(const matrix *m, int64_t *flat, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < m->n_out; i++)
        for (int64_t p = row_begin(m, i); p < row_begin(m, i + 1); p++) flat[p] = i * m->n_in + m->col[p];
}

/* Rows and columns of ascending sites: crow (n_out + 1) and col (n). */
void sf_split(const int64_t *flat, int64_t n, int64_t n_out, int64_t n_in, int32_t *crow, int32_t *col, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (n > SERIAL)
    for (int64_t i = 0; i <= n_out; i++) crow[i] = n_below(flat, n, i * n_in);
#pragma omp parallel for num_threads(threads) schedule(static) if (n > SERIAL)
    for (int64_t i = 0; i < n_out; i++)
        for (int32_t p = crow[i]; p < crow[i + 1]; p++) col[p] = flat[p] - i * n_in;
}

/* to[c][r] = from[r][c] for the rows of this thread, 16 by 16 in registers. */
CLONES static void transpose_rows(const float *from, float *to, int64_t rows, int64_t cols, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
    for (int64_t r = r0; r < r1; r += LANES)
        for (int64_t c = c0; c < c1; c += LANES) {
            if (r + LANES <= r1 && c + LANES <= c1) {
                vec v[LANES];
                _Pragma("GCC unroll 16") for (int k = 0; k < LANES; k++) v[k] = AT(from + (r + k) * cols + c);
                turn_16(v);
                _Pragma("GCC unroll 16") for (int k = 0; k < LANES; k++) AT(to + (c + k) * rows + r) = v[k];
            } else
                for (int64_t i = c; i < (c + LANES < c1 ? c + LANES : c1); i++)
                    for (int64_t k = r; k < (r + LANES < r1 ? r + LANES : r1); k++) to[i * rows + k] = from[k * cols + i];
        }
}

/* The longer side is shared out among the threads. */
void sf_transpose(const float *from, float *to, int64_t rows, int64_t cols, int threads) {
    int by_rows = rows >= cols;
    int64_t blocks = ((by_rows ? rows : cols) + LANES - 1) / LANES;
#pragma omp parallel num_threads(threads) if (rows * cols > SERIAL)
    {
        int me = omp_get_thread_num(), n = omp_get_num_threads();
        int64_t first = blocks * me / n * LANES, last = me + 1 == n ? (by_rows ? rows : cols) : blocks * (me + 1) / n * LANES;
        if (by_rows) transpose_rows(from, to, rows, cols, first, last, 0, cols);
        else transpose_rows(from, to, rows, cols, 0, rows, first, last);
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
            store(y + r * batch + c, v, n);
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
            store(a->dx + r * batch + c, rstd * (g * a->gamma[r] - load(average + c, n) - hat * load(average + batch + c, n)), n);
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
            fetch(table + ((int64_t)index[ahead] * parts + part) * nv * LANES);
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
