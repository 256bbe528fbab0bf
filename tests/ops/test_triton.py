"""The Triton kernels where no GPU is: run by Triton's interpreter and compiled for one. And how tiles are chosen."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsefleet.ops import triton_linear
from sparsefleet.ops.pattern import Pattern
from sparsefleet.ops.triton_linear import Tile, available, small_tile, tile_for, triton_backward, triton_forward, triton_gather

HERE = Path(__file__).parent


@pytest.mark.slow
def test_the_kernels_are_right_in_the_interpreter():
    """In a process of its own: Triton decides at import whether it compiles or interprets."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", str(HERE / "test_triton_linear.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=HERE.parent.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) > 40
    assert "skipped" not in done.stdout


class Recorder:
    """Takes the kernels' place and keeps what each would have been launched with."""

    def __init__(self):
        self.launches = []

    def __call__(self, name):
        self.name = name
        return self

    def __getitem__(self, grid):
        return lambda **arguments: self.launches.append((self.name, grid[0], arguments))


@pytest.fixture
def launches(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(triton_linear, "_kernel", recorder)
    return recorder.launches


def layer(n_in, n_out, fan_in, batch, dtype=torch.float32, *, constant=True):
    """Arrays of a layer's shapes, whose contents nothing reads."""

    def index(n):
        return torch.empty(n, dtype=torch.int32)

    nnz = n_out * fan_in
    pattern = Pattern(
        (n_out, n_in),
        fan_in if constant else None,
        index(0 if constant else n_out + 1),
        index(nnz),
        1,
        index(n_in + 1),
        index(nnz),
        index(nnz),
    )
    x, dy = (torch.empty(n, batch, dtype=dtype) for n in (n_in, n_out))
    return pattern, torch.empty(nnz), x, dy, torch.empty(n_out)


def compiled(name, arguments, capability=90):
    """A launch compiled as Triton specialises it: pointers and integers by whether 16 divides them, and ones built in; all its stages."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sparsefleet.ops import triton_kernels

    kernel = getattr(triton_kernels, name)
    types = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32"}
    options = {key: arguments.pop(key) for key in ("num_warps", "enable_fp_fusion")}
    signature, constants, attributes = {}, {}, {}
    for place, param in enumerate(kernel.params):
        value = arguments[param.name]
        if param.is_constexpr or (isinstance(value, int) and value == 1 and not param.do_not_specialize):
            signature[param.name], constants[(place,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[param.name], attributes[(place,)] = types[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[param.name] = "i32"
            if value % 16 == 0 and not param.do_not_specialize:
                attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm


WIDE_LOAD = re.compile(r"ld\.global(?:\.\w+)*\.v4")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("constant", [True, False])
def test_kernels_compile_and_fetch_whole_runs_side_by_side(launches, dtype, constant, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pattern, values, x, dy, bias = layer(4096, 2048, 50, 64, dtype, constant=constant)
    triton_forward(x, values, pattern, bias)
    for need in ((True, True), (True, False), (False, True)):
        triton_backward(dy, x, values, pattern, *need)
    assert [name for name, _, _ in launches] == ["product", "fused_backward", "product", "sampled"]
    for name, _, arguments in launches:
        unroll = arguments["U"]
        stages = compiled(name, dict(arguments))
        own = 0 if name == "product" else 1  # the row that stays in registers
        assert len(WIDE_LOAD.findall(stages["ptx"])) >= unroll + own, name
        if name == "product":
            loop = stages["ttgir"].split("scf.for")[1].split("scf.yield")[0]
            assert loop.count("tt.load") >= 3
            assert "convert_layout" not in loop, "threads pass data to each other in the product's loop"


@pytest.mark.parametrize(
    ("batch", "shape"), [(1, (784, 2000, 78)), (4, (256, 256, 16)), (3, (300, 1, 1)), (5, (300, 1, 1)), (130, (64, 9, 3)), (5, (1, 300, 1))]
)
def test_odd_shapes_compile(launches, batch, shape, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pattern, values, x, dy, _ = layer(*shape, batch)
    triton_forward(x, values, pattern)
    triton_backward(dy, x, values, pattern, True, True)
    for name, _, arguments in launches:
        assert ".entry" in compiled(name, dict(arguments))["ptx"]


@pytest.mark.parametrize("capability", [80, 100])
def test_kernels_compile_for_older_and_newer_devices(launches, capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pattern, values, x, dy, _ = layer(300, 200, 20, 64, torch.bfloat16)
    triton_forward(x, values, pattern)
    triton_backward(dy, x, values, pattern, True, True)
    for name, _, arguments in launches:
        assert f".target sm_{capability}" in compiled(name, dict(arguments), capability)["ptx"]


def test_the_gather_compiles_to_whole_rows_side_by_side(launches, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    triton_gather(torch.empty(64, 64), torch.empty(256, dtype=torch.int32), 64)
    ((name, _, arguments),) = launches
    stages = compiled(name, dict(arguments))
    assert len(WIDE_LOAD.findall(stages["ptx"])) >= 8
    assert "convert_layout" not in stages["ttgir"].split("scf.for")[1].split("scf.yield")[0]


def test_a_given_tile_is_used(launches):
    pattern, values, x, dy, _ = layer(300, 200, 10, 64)
    mine = Tile(32, 2, 4, 2, 4)
    triton_forward(x, values, pattern, tile=mine)
    triton_backward(dy, x, values, pattern, True, True, tile=mine)
    assert {(a["BB"], a["R"], a["U"], a["num_warps"]) for _, _, a in launches} == {(32, 2, 4, 2)}
    assert [name for name, _, _ in launches] == ["product", "fused_backward", "fused_backward"]


def test_several_batch_tiles_add_in_the_order_of_their_launches(launches):
    pattern, values, x, dy, _ = layer(300, 200, 10, 200)
    triton_backward(dy, x, values, pattern, True, True)
    assert [(a["tile"], a["ADD"]) for _, _, a in launches] == [(0, False), (1, True), (2, True), (3, True)]
    assert all(a["BB"] == 64 for _, _, a in launches)


def test_every_batch_tile_and_row_has_a_program(launches):
    pattern, values, x, _, _ = layer(300, 203, 10, 200)
    triton_forward(x, values, pattern)
    ((_, n_programs, arguments),) = launches
    assert n_programs == 4 * -(-203 // arguments["R"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [5, 8, 16, 33, 64, 130, 256, 2048])
@pytest.mark.parametrize("warps", [1, 4])
def test_tiles_fill_their_warps(dtype, batch, warps):
    tile = tile_for(torch.empty(1000, batch, dtype=dtype), 50, warps=warps)
    size = dtype.itemsize
    assert tile.batch * size <= 256
    assert tile.batch >= min(batch, 256 // size)
    assert batch % tile.vector == 0
    assert tile.vector * size <= 16
    assert tile.rows * tile.batch // tile.vector >= 32 * warps  # no thread is idle
    assert tile.unroll * tile.rows <= max(32 * warps, 2 * tile.rows)


def test_runs_are_cut_only_where_that_makes_them_fit_into_cache(monkeypatch):
    monkeypatch.setattr(triton_linear, "_l2_bytes", lambda device: 50 * 2**20)
    widths = {n: tile_for(torch.empty(n, 256, device="meta"), 50, warps=4).batch for n in (50_000, 150_000, 300_000, 1_000_000)}
    assert widths == {50_000: 64, 150_000: 32, 300_000: 16, 1_000_000: 64}


def test_short_rows_get_short_rounds():
    assert tile_for(torch.empty(100, 64), 3, warps=4).unroll == 4
    assert small_tile(1, 3).unroll == 4
    assert small_tile(3, 10_000).unroll == 128
    assert small_tile(3, 10_000).batch == 4


def test_available_says_why_not():
    assert available("cpu") == "Triton is for CUDA devices"
    if not torch.cuda.is_available():
        assert available("cuda") is not None


@pytest.mark.gpu
def test_the_layer_on_a_gpu_uses_these_kernels():
    assert available("cuda") is None
    from sparsefleet.ops import engine

    assert engine("cuda").name == "triton"


def test_the_package_imports_no_triton():
    code = "import sys, sparsefleet.ops.triton_linear as t; t.available('cpu'); t.available('cuda'); print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
