"""Sequence models: the scan against the recurrence, Mamba-2 against its steps, causality."""

from __future__ import annotations

import time
import warnings

import pytest
import torch
from torch import Tensor, nn

from embedder.networks.attention import GatedAttention, RMSNorm, RotaryPositions, n_heads
from embedder.networks.mamba import CHUNK, STATE, Mamba2, head_size, state_space
from embedder.networks.recurrence import MinGRU, linear_scan
from embedder.networks.sequence import TCN, CausalConv, sequence_model, sequence_size
from embedder.zoo import SequenceName
from tests.tensors import noise

KINDS: tuple[SequenceName, ...] = ("tf", "attn", "gru", "tcn", "hybrid", "mamba")
CAUSAL: tuple[SequenceName, ...] = ("tcn", "mamba")


def step_by_step(decay: Tensor, drive: Tensor) -> Tensor:
    state = torch.zeros_like(drive[:, 0])
    states = []
    for a, b in zip(decay.unbind(1), drive.unbind(1), strict=True):
        state = a * state + b
        states.append(state)
    return torch.stack(states, 1)


def worst(ours: Tensor, reference: Tensor) -> float:
    """The greatest relative error of any one value."""
    return float(((ours - reference) / reference).abs().max())


def gates(steps: int, dim: int, spread: float = 4.0) -> tuple[Tensor, Tensor]:
    """Decays and drives of a minGRU, float64 [1, T, D]."""
    gate, hidden = noise(2, 1, steps, dim, dtype=torch.float64) * spread
    return (-gate).sigmoid(), gate.sigmoid() * torch.where(
        hidden >= 0, hidden + 0.5, hidden.sigmoid()
    )


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 64, 250, 1001])
def test_the_scan_is_the_recurrence(steps: int) -> None:
    decay, drive = gates(steps, 8)
    reference = step_by_step(decay, drive)
    assert worst(linear_scan(decay, drive), reference) <= 1e-13
    assert worst(linear_scan(decay.float(), drive.float()), reference) <= 2e-6


def test_the_scan_holds_for_100_000_steps() -> None:
    decay, drive = gates(100_000, 4)
    reference = step_by_step(decay, drive)
    assert worst(linear_scan(decay, drive), reference) <= 1e-13
    assert worst(linear_scan(decay.float(), drive.float()), reference) <= 2e-6


@pytest.mark.parametrize("decay", [0.0, 1e-30, 1 - 1e-7, 1.0])
def test_the_scan_neither_overflows_nor_vanishes(decay: float) -> None:
    steps = 5_000
    a, b = torch.full((1, steps, 2), decay), torch.ones(1, steps, 2)
    reference = step_by_step(a.double(), b.double())
    assert worst(linear_scan(a, b), reference) <= 1e-5


def test_long_scans_are_quick() -> None:
    decay, drive = (part.float() for part in gates(100_000, 32))
    begin = time.thread_time()
    linear_scan(decay, drive)
    assert time.thread_time() - begin < 1.0


def test_gradients_go_through_the_scan() -> None:
    decay, drive = (part.requires_grad_() for part in gates(37, 2))
    assert torch.autograd.gradcheck(linear_scan, (decay, drive))


def test_a_traced_scan_takes_other_lengths() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and OpenVINO's way in
        traced = torch.jit.trace(linear_scan, gates(5, 2), check_trace=False)  # type: ignore[no-untyped-call]
    for steps in (1, 250, 3000):
        decay, drive = gates(steps, 2)
        assert worst(traced(decay, drive), linear_scan(decay, drive)) <= 1e-13


def test_min_gru() -> None:
    torch.manual_seed(0)
    layer, x = MinGRU(6).double(), noise(2, 50, 6, dtype=torch.float64)
    hidden, gate = (x @ layer.to_hidden_and_gate.weight.T).chunk(2, -1)
    state = torch.zeros(2, 6, dtype=torch.float64)
    expected = []
    for t in range(50):
        z = gate[:, t].sigmoid()
        g = torch.where(hidden[:, t] >= 0, hidden[:, t] + 0.5, hidden[:, t].sigmoid())
        state = (1 - z) * state + z * g
        expected.append(state)
    assert torch.allclose(layer(x), torch.stack(expected, 1), rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 250])
def test_the_state_space_is_its_recurrence(steps: int) -> None:
    batch, heads, size = 2, 3, 5
    x = noise(batch, steps, heads, size, dtype=torch.float64)
    log_decay = -noise(batch, steps, heads, dtype=torch.float64).abs() * 0.5
    b, c = noise(2, batch, steps, STATE, dtype=torch.float64)
    drive = torch.einsum("bthp,btn->bthpn", x, b)
    states = step_by_step(log_decay.exp()[..., None, None].expand_as(drive), drive)
    expected = torch.einsum("bthpn,btn->bthp", states, c)
    assert torch.allclose(state_space(x, log_decay, b, c), expected, rtol=1e-10, atol=1e-10)


def test_mamba_is_its_recurrence() -> None:
    """The whole block, one frame after the other, as arXiv 2405.21060 defines it."""
    torch.manual_seed(0)
    layer, x = Mamba2(16).double(), noise(2, 150, 16, dtype=torch.float64)
    inner, heads, size = layer.inner, layer.heads, head_size(16)
    gate, mixed, dt = torch.split(layer.in_proj(x), [inner, inner + 2 * STATE, heads], -1)
    assert layer.conv1d.bias is not None
    window = torch.zeros(2, 3, inner + 2 * STATE, dtype=torch.float64)
    state = torch.zeros(2, heads, size, STATE, dtype=torch.float64)
    kernel = layer.conv1d.weight[:, 0].T
    expected = []
    for t in range(150):
        window = torch.cat([window[:, 1:], mixed[:, t : t + 1]], 1)
        now = nn.functional.silu((window * kernel).sum(1) + layer.conv1d.bias)
        values, b, c = torch.split(now, [inner, STATE, STATE], -1)
        values = values.view(2, heads, size)
        step = nn.functional.softplus(dt[:, t] + layer.dt_bias)
        decay = (-step * layer.A_log.exp()).exp()
        state = decay[..., None, None] * state + torch.einsum("bh,bhp,bn->bhpn", step, values, b)
        y = torch.einsum("bhpn,bn->bhp", state, c) + layer.D[:, None] * values
        y = y.flatten(1) * nn.functional.silu(gate[:, t])
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5) * layer.norm.weight
        expected.append(layer.out_proj(y))
    assert torch.allclose(layer(x), torch.stack(expected, 1), rtol=1e-9, atol=1e-12)


def test_mamba_sizes() -> None:
    assert [(Mamba2(dim).heads, head_size(dim)) for dim in (128, 256, 512)] == [
        (8, 32),
        (8, 64),
        (16, 64),
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 65])
def test_shapes(kind: SequenceName, steps: int) -> None:
    model = sequence_model(kind, 20, 32).eval()
    with torch.inference_mode():
        y = model(noise(3, steps, 20))
    assert y.shape == (3, steps, sequence_size(kind, 32))
    assert y.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_who_sees_the_future(kind: SequenceName) -> None:
    torch.manual_seed(0)
    model = sequence_model(kind, 20, 32).double().eval()
    x = noise(1, 100, 20, dtype=torch.float64)
    later = x.clone()
    later[:, 60:] += 1
    with torch.inference_mode():
        difference = (model(later) - model(x))[:, :60].abs().max()
    assert (float(difference) <= 1e-12) == (kind in CAUSAL)


def test_rotary_positions_depend_on_distance_alone() -> None:
    positions = RotaryPositions(8).double()
    query, key = noise(2, 8, dtype=torch.float64)[:, None, None, None].expand(-1, 1, 1, 50, 8)
    products = positions(query)[0, 0] @ positions(key)[0, 0].T
    assert torch.allclose(products[3, 10], products[30, 37], atol=1e-5)
    assert torch.allclose(positions(query).norm(dim=-1), query.norm(dim=-1))


def test_closed_gates_silence_attention() -> None:
    layer = GatedAttention(32)
    nn.init.zeros_(layer.to_gates.weight)
    nn.init.constant_(layer.to_gates.bias, -100.0)
    assert layer(noise(1, 10, 32)).abs().max() < 1e-30


@pytest.mark.parametrize(("dim", "heads"), [(104, 4), (128, 8), (256, 8), (1024, 8)])
def test_heads(dim: int, heads: int) -> None:
    assert n_heads(dim) == heads


def test_rms_norm() -> None:
    norm = RMSNorm(16)
    y = norm(noise(3, 5, 16))
    assert torch.allclose(y.square().mean(-1), torch.ones(3, 5), atol=1e-5)


def test_tcn_sees_as_far_as_its_dilations_reach() -> None:
    torch.manual_seed(0)
    layer = TCN(4).double()
    x = torch.zeros(1, 200, 4, dtype=torch.float64)
    for part in layer.modules():
        if isinstance(part, CausalConv):
            nn.init.uniform_(part.weight_v, 0.1, 1.0)
    pulse = x.clone()
    pulse[:, 50] = 1
    reached = (layer(pulse) - layer(x))[0].abs().sum(-1).nonzero()
    assert (int(reached.min()), int(reached.max())) == (50, 50 + 2 * 2 * (1 + 2 + 4 + 8 + 16))


def test_weights_of_a_causal_convolution_are_normalised() -> None:
    conv = CausalConv(4, 1)
    before = conv(noise(1, 4, 9))
    with torch.no_grad():
        conv.weight_v.mul_(7)
    assert torch.allclose(conv(noise(1, 4, 9)), before, atol=1e-6)
