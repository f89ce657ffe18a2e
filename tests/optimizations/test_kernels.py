"""qbench's own kernels: their arithmetic here, the kernels themselves where there is a GPU."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from qbench.optimizations import axes, flash_attention_3, quantization
from qbench.optimizations.kernels import fp8_attention, fp8_linear, rows, vae_conv
from qbench.optimizations.vae import patch
from qbench.pipelines import cogvideox_layers, specs
from qbench.recipe.schema import Decode, Quantize, Variant
from scripts import attention_inputs

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)


def _exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    out = functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def _random(
    tokens: int, heads: int = 2, channels: int = 64, keys: int | None = None, batch: int = 1
) -> list[torch.Tensor]:
    """Query, key and value, (batch, tokens, heads, channels)."""
    generator = torch.Generator().manual_seed(0)
    lengths = (tokens, keys or tokens, keys or tokens)
    return [torch.randn(batch, n, heads, channels, generator=generator) for n in lengths]


def test_fp8_attention_of_equal_values_returns_them() -> None:
    """Weights must sum to one exactly: numerator and denominator come from the same codes."""
    q, k, _ = _random(300)
    v = torch.full_like(q, 0.75)
    assert torch.allclose(fp8_attention.emulated(3 * q, k, v), v, rtol=1e-5)


def test_fp8_attention_of_no_preference_is_the_mean() -> None:
    _, k, v = _random(300)
    found = fp8_attention.emulated(torch.zeros_like(k), k, v + 1)
    expected = (v + 1).mean(1, keepdim=True).expand_as(v)
    assert _error(found, expected) < 0.01


def test_fp8_attention_of_one_loud_key_is_its_value() -> None:
    q, k, v = _random(200)
    k[:, 77] = 40 * functional.normalize(q[:, :1], dim=-1)[:, 0]
    found = fp8_attention.emulated(q[:, :1].expand_as(q), k, v)
    assert _error(found, v[:, 77:78].expand_as(v)) < 0.04


@pytest.mark.parametrize(("channels", "keys"), [(64, 700), (128, 700), (128, 180)])
def test_fp8_attention_is_as_close_as_plain_fp8_with_true_exponentials(
    channels: int, keys: int
) -> None:
    """Against an independent FP8 attention: codes in place of exponentials must not cost more."""
    q, k, v = _random(700, channels=channels, keys=keys)

    def e4m3(x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax() / 448
        return (x / scale).to(torch.float8_e4m3fn).float() * scale

    scores = e4m3(q).transpose(1, 2) @ e4m3(k).permute(0, 2, 3, 1) / channels**0.5
    weights = (scores - scores.amax(-1, keepdim=True)).exp() * 256
    weights = weights.to(torch.float8_e4m3fn).float()
    plain = (weights @ e4m3(v).transpose(1, 2) / weights.sum(-1, keepdim=True)).transpose(1, 2)
    exact = _exact(q, k, v)
    assert _error(fp8_attention.emulated(q, k, v), exact) < 1.1 * _error(plain, exact)


def test_centring_keys_pays_where_they_have_a_common_part() -> None:
    q, k, v = _random(500)
    shifted = k + 6 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    with_shift = _error(fp8_attention.emulated(q, shifted, v), _exact(q, shifted, v))
    assert with_shift < 1.1 * _error(fp8_attention.emulated(q, k, v), _exact(q, k, v))


@pytest.mark.parametrize("channels", [64, 128])
def test_scores_past_what_fp16_holds_still_choose_their_key(channels: int) -> None:
    """A score of 5,700 once gave NaN; here they reach forty million."""
    q, k, v = _random(200, channels=channels)
    loud = functional.normalize(k[:, 77], dim=-1)
    k[:, 77], q = 1e4 * loud, 1e4 * loud[:, None].expand_as(q)
    found = fp8_attention.emulated(q, k, v)
    assert _error(found, v[:, 77:78].expand_as(v)) < 0.04


def test_a_loud_query_leaves_the_others_as_they_are() -> None:
    q, k, v = _random(200)
    expected = fp8_attention.emulated(q, k, v)
    q[:, 5] *= 1e6
    found = fp8_attention.emulated(q, k, v)
    others = torch.arange(200) != 5
    assert torch.equal(found[:, others], expected[:, others])
    assert found.isfinite().all()


@pytest.mark.parametrize("name", attention_inputs.INPUTS)
def test_hard_inputs_cost_what_they_cost_any_fp8_attention(name: str) -> None:
    row = attention_inputs.measured(name, queries=300, keys=300, channels=128, device="cpu")
    assert row["not_finite"] == 0
    assert row["bf16"] < 0.01  # the reference that it is measured by
    assert row["fp8"] < 1.25 * row["plain_fp8"]  # type: ignore[operator]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_comes_through(which: int, bad: float) -> None:
    """Wherever torch's attention has no finite value, a video of ours must show it too."""
    inputs = _random(150)
    inputs[which][0, 40, 1, 3] = bad
    found, expected = fp8_attention.emulated(*inputs), _exact(*inputs)
    assert not found[~expected.isfinite()].isfinite().any()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 4, 2, 32),) * 3, "64 or 128"),
        (((4, 2, 64),) * 3, "64 or 128"),
        (((1, 4, 2, 64), (1, 5, 2, 64), (1, 6, 2, 64)), "keys and values of one shape"),
        (((1, 4, 2, 64), (1, 4, 3, 64), (1, 4, 3, 64)), "queries' heads"),
        (((1, 4, 2, 64), (1, 0, 2, 64), (1, 0, 2, 64)), "at least one"),
        (((1, 4, 2, 128),) * 3, "BF16 or FP16"),
    ],
)
def test_fp8_attention_refuses_other_shapes(shapes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fp8_attention.attend(*(torch.zeros(shape) for shape in shapes))


# Queries, keys, heads, batch
LENGTHS = [
    (1, 1, 1, 1), (128, 128, 3, 1), (300, 300, 3, 2), (1111, 1111, 1, 1), (2, 300, 2, 4),
    (700, 512, 3, 1), (129, 1, 2, 1), (400, 2049, 2, 3),
]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs an NVIDIA Hopper GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_kernel_computes_what_its_model_says(
    dtype: torch.dtype, channels: int, lengths: tuple[int, int, int, int]
) -> None:
    queries, keys, heads, batch = lengths
    inputs = _random(queries, heads, channels, keys, batch)
    q, k, v = (x.cuda().to(dtype) for x in inputs)
    found = fp8_attention.attend(q, k + 2, v)
    assert _error(found, fp8_attention.emulated(q, k + 2, v)) < 0.01
    assert torch.equal(found, fp8_attention.attend(q, k + 2, v))


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs an NVIDIA Hopper GPU")
@pytest.mark.parametrize("channels", [64, 128])
def test_kernel_reads_views_as_they_lie(channels: int) -> None:
    """Views of one projection, heads before tokens, and what must be copied to be read."""
    generator, plain = torch.Generator("cuda").manual_seed(0), torch.contiguous_format

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    fused = random(2, 333, 3 * 4 * channels).chunk(3, -1)
    heads_first = [x.transpose(1, 2) for x in random(3, 2, 4, 333, channels)]
    every_other = [x[:, ::2] for x in random(3, 2, 666, 4, channels)]
    odd = [x[..., 3 : 3 + channels] for x in random(3, 2, 333, 4, channels + 9)]
    shape = (2, 333, 4, channels)
    shifted = [x[1:-7].view(shape) for x in random(3, math.prod(shape) + 8)]
    split = [x.unflatten(-1, (4, -1)) for x in fused]
    for q, k, v in (split, heads_first, every_other, odd, shifted):
        expected = fp8_attention.attend(*(x.clone(memory_format=plain) for x in (q, k, v)))
        assert torch.equal(fp8_attention.attend(q, k, v), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs an NVIDIA Hopper GPU")
@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize("name", attention_inputs.INPUTS)
def test_kernel_takes_hard_inputs_as_its_model_does(name: str, channels: int) -> None:
    row = attention_inputs.measured(name, 600, 600, channels, "cuda")
    assert row["not_finite"] == 0
    assert row["fp8"] < 1.25 * row["plain_fp8"]  # type: ignore[operator]


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs an NVIDIA Hopper GPU")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("channels", [64, 128])
def test_kernel_lets_through_what_is_not_finite(channels: int, which: int, bad: float) -> None:
    inputs = [x.cuda().bfloat16() for x in _random(300, channels=channels)]
    inputs[which][0, 40, 1, 3] = bad
    # In double precision: PyTorch has fused kernels for less, of which synccheck thinks ill.
    found, expected = fp8_attention.attend(*inputs), _exact(*(x.double() for x in inputs))
    assert not found[~expected.isfinite()].isfinite().any()
    assert found[:, :, 0].isfinite().all()  # the other head


def test_threads_that_share_a_row_hold_all_of_it_in_registers() -> None:
    for columns in range(8, rows.MOST + 1, 8):
        threads = rows.lanes(columns)
        vectors = -(-columns // (8 * threads))
        assert threads % 32 == 0
        assert threads <= 1024
        assert vectors <= 8
        assert 8 * vectors * threads >= columns


def test_rows_are_quantized_to_three_bits_of_mantissa_each_with_its_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 96, generator=generator) * torch.logspace(-6, 3, 50)[:, None]
    codes, scale = fp8_linear.quantize_rows(x)
    back = codes.float() * scale
    assert torch.allclose(back.abs().amax(1), x.abs().amax(1), rtol=1e-5)
    normal = x.abs() > x.abs().amax(1, keepdim=True) / 448 * 2**-6
    assert ((back - x).abs()[normal] <= x.abs()[normal] * (2**-4 + 1e-5)).all()
    with pytest.raises(ValueError, match=r"no such activation: gelu$"):
        fp8_linear.quantize_rows(x, "gelu")
    through_gelu, scale = fp8_linear.quantize_rows(x, "gelu_tanh")
    expected = functional.gelu(x, approximate="tanh")
    assert _error(through_gelu.float() * scale, expected) < 0.03
    through_geglu, scale = fp8_linear.quantize_rows(x, "geglu")
    assert through_geglu.shape == (50, 48)
    expected = x[:, :48] * functional.gelu(x[:, 48:])
    assert _error(through_geglu.float() * scale, expected) < 0.03


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs an NVIDIA Hopper GPU")
@pytest.mark.parametrize(
    "columns", [64, 320, 1280, 1288, 1536, 1920, 2056, 7680, 8192, 8200, 8960, 12288, 16384]
)
@pytest.mark.parametrize("activation", fp8_linear.ACTIVATIONS)
def test_rows_kernel_gives_the_codes_of_its_model(columns: int, activation: str) -> None:
    """12,288 is a feed-forward of CogVideoX-5B's, which an earlier kernel refused."""
    width = columns * (2 if activation == "geglu" else 1)
    x = torch.randn(301, width, generator=torch.Generator().manual_seed(0)).bfloat16()
    codes, scale = fp8_linear.quantize_rows(x.cuda(), activation)
    expected, expected_scale = fp8_linear.quantize_rows(x, activation)
    assert codes.shape == expected.shape == (301, columns)
    assert _error(scale.cpu(), expected_scale) < 1e-3
    back, expected = codes.cpu().float() * scale.cpu(), expected.float() * expected_scale
    assert _error(back, expected) < 0.01  # a code more or less where GELU was rounded otherwise


@pytest.mark.parametrize("activation", ["gelu-approximate", "geglu"])
def test_feed_forward_in_parts_is_the_feed_forward(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers' own, of either kind, in whose place it is put."""
    from diffusers.models.attention import FeedForward

    monkeypatch.setattr(fp8_linear, "ROWS_OF_A_PART", 300)
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"ff": FeedForward(64, activation_fn=activation).eval()})
    x = torch.randn(3, 411, 64)
    linears = {name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    with torch.no_grad():
        exact = model["ff"](x)
        layers = copy.deepcopy(model)
        for name in sorted(linears):
            fp8_linear.replace(layers, {name})  # one by one, so none is a feed-forward's
        fp8_linear.replace(model, linears)
        assert isinstance(model["ff"], fp8_linear.Fp8FeedForward)
        found, by_layers = model["ff"](x), layers["ff"](x)
    assert _error(found, exact) < 0.06
    assert _error(found, by_layers) < 1e-3


def test_offload_brings_the_weights_of_every_fp8_layer() -> None:
    """accelerate's, under diffusers' sequential offload: a module's parameters as it is called.

    What is read of a module that is not called has no data, and was computed with all the same.
    """
    from accelerate import cpu_offload

    module = specs.load(specs.find("tiny-cogvideox"), "fp32", "cpu").denoiser
    axes.fuse_qkv(module)
    quantization.apply(module, Quantize(backend="qbench", scheme="fp8_dynamic_row"))
    cogvideox_layers.set_attention(module, _exact)
    inputs = _inputs(module)
    expected = _call(module, *inputs)
    cpu_offload(module, "cpu", offload_buffers=True)
    assert {weight.device.type for weight in module.parameters()} == {"meta"}
    assert torch.equal(_call(module, *inputs), expected)


def test_fp8_layers_hold_a_byte_a_weight_and_nothing_of_their_making() -> None:
    pipeline = specs.load(specs.find("tiny-cogvideox"), "bf16", "cpu")
    module = pipeline.denoiser
    before = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    variant = Variant(
        dtype="bf16",
        fuse_qkv=True,
        quantize=Quantize(backend="qbench", scheme="fp8_dynamic_row"),
    )
    facts = axes.apply(pipeline, variant, "cpu", steps=1).facts
    assert facts["quantized_parameter_share"] > 0.98
    assert not any(weight.grad_fn for weight in module.parameters())
    assert sum(layer.weight.numel() for layer in before) == 0  # even where someone still has them
    held = sum(x.numel() * x.element_size() for x in [*module.parameters(), *module.buffers()])
    assert held < 9_673_024 * 1.1


def test_a_model_of_fp8_layers_has_the_dtype_that_it_computes_in() -> None:
    """diffusers takes the dtype of a model's first parameter, and inputs are cast to it."""
    layer = torch.nn.Linear(64, 64, dtype=torch.bfloat16)
    first = next(fp8_linear.Fp8Linear(layer).parameters())
    assert first.dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs an NVIDIA Hopper GPU")
@pytest.mark.parametrize("compiled", [False, True])
def test_fp8_layers_leave_the_device_with_their_block(compiled: bool) -> None:
    """Group offload with a stream takes parameters back and forgets buffers (diffusers 0.42)."""
    pipeline = specs.load(specs.find("tiny-cogvideox"), "bf16", "cuda")
    module = pipeline.denoiser
    inputs = _inputs(module)
    expected = _call(module, *inputs)
    variant = {
        "dtype": "bf16",
        "fuse_qkv": True,
        "quantize": {"backend": "qbench", "scheme": "fp8_dynamic_row"},
        "attention": "fp8",
        "compile": {} if compiled else None,
        "memory": {"offload": "group"},
    }
    axes.apply(pipeline, Variant.model_validate(variant), "cuda", steps=1)
    for _ in range(3):
        assert _error(_call(module, *inputs), expected) < 0.1
    weights = list(module.transformer_blocks.parameters())
    assert {weight.device.type for weight in weights} == {"cpu"}


def _inputs(module: Any) -> tuple[torch.Tensor, ...]:
    """Latents, text embeddings and timesteps for one step, on the module's device."""
    config = module.config
    generator = torch.Generator().manual_seed(0)
    frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
    shape = (2, frames, config.in_channels, config.sample_height, config.sample_width)
    latents = torch.randn(shape, generator=generator)
    text = torch.randn(2, config.max_text_seq_length, config.text_embed_dim, generator=generator)
    times = torch.tensor([500, 500])
    return (
        latents.to(module.device, module.dtype),
        text.to(module.device, module.dtype),
        times.to(module.device),
    )


def _call(module: Any, *inputs: torch.Tensor, rotary: Any = None) -> torch.Tensor:
    with torch.no_grad():
        return module(*inputs, image_rotary_emb=rotary).sample


def _step(module: Any) -> torch.Tensor:
    config, rotary = module.config, None
    inputs = _inputs(module)
    if config.use_rotary_positional_embeddings:
        patches = inputs[0].shape[1] * (config.sample_height // 2) * (config.sample_width // 2)
        generator = torch.Generator().manual_seed(1)
        angles = torch.rand(patches, config.attention_head_dim, generator=generator)
        rotary = (angles.cos(), angles.sin())
    return _call(module, *inputs, rotary=rotary)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_our_processor_is_diffusers_own_with_another_kernel(rotary: bool, fused: bool) -> None:
    from diffusers import CogVideoXTransformer3DModel

    torch.manual_seed(0)
    module = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        num_layers=2,
        text_embed_dim=32,
        max_text_seq_length=7,
        sample_frames=5,
        sample_height=8,
        sample_width=8,
        use_rotary_positional_embeddings=rotary,
    ).eval()
    expected = _step(module)
    if fused:
        axes.fuse_qkv(module)
        assert torch.allclose(_step(module), expected, atol=1e-5)
    cogvideox_layers.set_attention(module, _exact)
    assert torch.allclose(_step(module), expected, atol=1e-5)


def test_a_denoiser_in_fp8_throughout_stays_close() -> None:
    """Attention and linears together, by their models: the arithmetic of recipes/fast.yaml."""
    pipeline = specs.load(specs.find("tiny-cogvideox"), "fp32", "cpu")
    module = pipeline.denoiser
    expected = _step(module)
    wanted = Quantize(backend="qbench", scheme="fp8_dynamic_row")
    axes.apply(pipeline, Variant(fuse_qkv=True, quantize=wanted), "cpu", steps=1)
    cogvideox_layers.set_attention(module, fp8_attention.emulated)
    assert 0.003 < _error(_step(module), expected) < 0.06


def test_pieces_of_a_linear_are_its_output_cut_and_share_no_memory() -> None:
    """Views of one output would keep a fused projection alive through attention."""
    layer = fp8_linear.Fp8Linear(torch.nn.Linear(64, 96).requires_grad_(False))
    x = torch.randn(2, 40, 64)
    pieces = torch.compile(lambda x: layer(x, pieces=3), backend="eager", fullgraph=True)(x)
    for piece, expected in zip(pieces, layer(x).chunk(3, -1), strict=True):
        torch.testing.assert_close(piece, expected)
    assert len({piece.untyped_storage().data_ptr() for piece in pieces}) == 3


def test_attention_over_a_fused_fp8_projection_equals_the_unfused_one() -> None:
    from diffusers.models.attention_processor import Attention, CogVideoXAttnProcessor2_0

    torch.manual_seed(0)
    plain = Attention(
        query_dim=64, dim_head=16, heads=4, qk_norm="layer_norm", bias=True, out_bias=True,
        processor=CogVideoXAttnProcessor2_0(),
    ).requires_grad_(False)  # fmt: skip
    video, text = torch.randn(2, 30, 64), torch.randn(2, 6, 64)
    expected = plain(video, encoder_hidden_states=text)
    plain.fuse_projections()
    fp8_linear.replace(plain, {"to_qkv"})
    plain.set_processor(cogvideox_layers.Processor(_exact))
    for ours, theirs in zip(plain(video, encoder_hidden_states=text), expected, strict=True):
        assert _error(ours, theirs) < 0.06  # FP8's own error


# Channels in and out, frames, height, width, (taps in time, in space), whether its input grows
CONVOLUTIONS = [
    (64, 128, 1, 16, 16, (1, 1), False),
    (128, 128, 4, 40, 56, (3, 3), False),
    (48, 80, 3, 23, 9, (3, 3), False),
    (256, 256, 2, 60, 90, (1, 3), True),
    (32, 48, 3, 17, 15, (1, 3), True),
    (128, 3, 3, 33, 90, (3, 3), False),
    (16, 512, 3, 60, 90, (3, 3), False),
]


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="the kernels are written for NVIDIA Hopper")
@pytest.mark.parametrize("more", [False, True], ids=["alone", "with-frames-before-and-residual"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_convolutions_of_planes_are_torchs(
    shape: tuple[Any, ...], dtype: torch.dtype, more: bool
) -> None:
    """Against torch's own in FP32, tiles that do not fill up and two videos included."""
    inputs, outputs, frames, height, width, (taps_t, taps), grows = shape
    kind = torch.nn.Conv2d if grows else torch.nn.Conv3d
    conv = kind(inputs, outputs, taps if grows else (taps_t, taps, taps)).to("cuda", dtype)
    weights = vae_conv.Weights(conv, 2 if grows else 1)
    packed = weights.packed(conv.weight.detach())
    bias = functional.pad(conv.bias.detach(), (0, -outputs % 8))
    torch.manual_seed(0)
    x = torch.randn(2, inputs, frames, height, width, device="cuda").to(dtype)
    before = x[:, :, :1].repeat(1, 1, taps_t - 1, 1, 1)
    if more:
        before = torch.randn_like(before)
    plain = torch.cat([before, x], 2).float()
    if grows:
        plain = plain.repeat_interleave(2, 3).repeat_interleave(2, 4)
    weight = conv.weight.detach().float().view(outputs, inputs, taps_t, taps, taps)
    expected = functional.conv3d(
        plain, weight, conv.bias.detach().float(), padding=(0, taps // 2, taps // 2)
    )
    given: dict[str, Any] = {}
    if more and taps_t > 1:
        given["before"] = vae_conv.to_planes(before)
    if more and not grows:
        residual = torch.randn_like(expected).to(dtype)
        given["residual"] = vae_conv.to_planes(residual)
        expected += residual
    if more and grows:  # and every frame twice, but for the first of an odd number
        given["copies"] = 2
        expected = expected.repeat_interleave(2, 2)[:, :, frames % 2 :]
    found = vae_conv.convolve(vae_conv.to_planes(x), weights, packed, bias, **given)
    error = _error(vae_conv.from_planes(found, outputs), expected)
    assert error < (4e-3 if dtype == torch.bfloat16 else 5e-4)  # rounding of weights and output


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="the kernels are written for NVIDIA Hopper")
@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (3, 3), (4, 2), (9, 3)])
@pytest.mark.parametrize(("channels", "groups"), [(128, 32), (48, 16), (80, 16)])
def test_norms_of_planes_are_group_norms(
    channels: int, groups: int, frames: int, latents: int
) -> None:
    """Against the plain operations in FP32, on values whose mean is larger than their spread."""
    torch.manual_seed(0)
    layer = torch.nn.GroupNorm(groups, channels).requires_grad_(False)
    torch.nn.init.normal_(layer.weight)
    x = vae_conv.to_planes(torch.randn(2, channels, frames, 44, 36) + 5).bfloat16()
    scale, shift = (
        vae_conv.to_planes(torch.randn(2, channels, latents, 6, 5)).bfloat16() for _ in range(2)
    )
    layer = layer.bfloat16()
    expected = vae_conv.group_norm(layer.float(), x.float(), scale.float(), shift.float())
    layer = layer.bfloat16().cuda()
    found = vae_conv.group_norm(layer, x.cuda(), scale.cuda(), shift.cuda())
    assert _error(found.cpu(), expected) < 3e-3


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="the kernels are written for NVIDIA Hopper")
def test_the_fused_decode_is_as_close_to_fp32_as_the_plain_one() -> None:
    """The bundled VAE: the decode in BF16 by our kernels and by torch's, against FP32."""
    errors = {}
    latents = torch.randn(1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(0)).cuda()
    with torch.no_grad():
        whole = specs.load(specs.find("tiny-cogvideox"), "fp32", "cuda").pipe.vae.float()
        exact = whole.decode(latents).sample
        for fused in (False, True):
            pipeline = specs.load(specs.find("tiny-cogvideox"), "bf16", "cuda").pipe
            patch.apply(pipeline, Decode(fused=fused))
            made = pipeline.vae.decode(latents.bfloat16()).sample
            errors[fused] = _error(made, exact)
    assert errors[True] < 1.1 * errors[False]


def test_scales_of_a_head_fill_fp8() -> None:
    """What FlashAttention 3 takes: the largest value of each head is FP8's own largest."""
    x = torch.randn(2, 50, 3, 16, generator=torch.Generator().manual_seed(0)) * 70
    x[:, :, 1] = 0
    rounded, scales = flash_attention_3.per_head(x)
    assert rounded.dtype == torch.float8_e4m3fn
    assert scales.shape == (2, 3)
    assert rounded.float().abs().amax((1, 3))[:, [0, 2]].unique().tolist() == [448]
    back = rounded.float() * scales[:, None, :, None]
    assert (back - x).abs().max() <= x.abs().max() / 28  # half of the last of three bits
    assert back[:, :, 1].eq(0).all()
