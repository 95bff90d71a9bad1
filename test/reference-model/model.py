"""The reference models' shapes and their forward pass, written to agree with llama.cpp's graphs of the same architecture
(src/models/olmoe.cpp, src/models/qwen2moe.cpp): rotary positions by halves, softmax over all experts before the choice,
weights of the chosen not normalised, SiLU-gated experts.

Made to train on one CPU core: tokens are sorted by expert, so that an expert is two matrix products over the rows that
chose it, in bfloat16 with float32 master weights; the output layer computes its loss and its gradients chunk by chunk, so
that tokens x vocabulary numbers never exist at once. With `exact=True` everything runs in float32, to be compared with
llama.cpp.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

VOCAB = 4096
EMBEDDING_STD = 0.5


@dataclass(frozen=True)
class Shape:
    arch: str
    layers: int
    width: int
    heads: int
    experts: int
    top_k: int
    expert_width: int
    shared_width: int  # 0: no shared expert
    qk_norm: bool  # over the whole width, before it is split into heads
    qkv_bias: bool
    rms_eps: float
    rope_base: float


SHAPES = {
    # OLMoE-1B-7B has the same 64 experts and top-8, with 16 layers, width 2048, 16 heads, experts 1024 wide.
    'olmoe': Shape('olmoe', 8, 192, 3, 64, 8, 64, 0, True, False, 1e-5, 10_000.0),
    # The first reference model: the shape of Qwen1.5-MoE.
    'qwen2moe': Shape('qwen2moe', 6, 192, 3, 32, 4, 128, 128, False, True, 1e-6, 10_000.0),
}


# Each expert's rows are padded with zeros to a multiple of this: oneDNN compiles a kernel for every new number of rows,
# and a step of 4,096 tokens took 3.3 s of processor time without the padding, 2.0 s with it.
ROW_BLOCK = 64


class Experts(torch.autograd.Function):
    """y[n] = sum over k of weights[n,k] * down[e] (silu(gate[e] x[n]) * (up[e] x[n])), e = ids[n,k].

    x [N, D], ids and weights [N, K], gate_up [E, 2F, D] (gate rows first), down [E, D, F]. Experts whose weights are
    float32 are computed in float32. The weight is applied to the F hidden values, where it is cheapest.
    """

    @staticmethod
    def forward(ctx, x, ids, weights, gate_up, down):
        width = gate_up.shape[1] // 2
        order = ids.flatten().argsort(stable=True)
        counts = torch.bincount(ids.flatten(), minlength=gate_up.shape[0])
        padded = (counts + ROW_BLOCK - 1) // ROW_BLOCK * ROW_BLOCK
        ends = padded.cumsum(0)
        # where each slot's row goes: its rank among all, moved by the padding before it
        slots = torch.empty_like(order)
        slots[order] = torch.arange(order.numel()) + ((ends - padded) - (counts.cumsum(0) - counts)).repeat_interleave(counts)
        slots, ends = slots.view_as(ids), ends.tolist()
        sources = torch.full((ends[-1],), x.shape[0])
        sources[slots] = torch.arange(x.shape[0]).unsqueeze(1)
        rows = pad_row(x).index_select(0, sources)
        hidden = rows.new_empty(rows.shape[0], 2 * width)
        for e, (start, end) in enumerate(zip([0] + ends, ends)):
            torch.mm(rows[start:end], gate_up[e].t(), out=hidden[start:end])
        gate, up = hidden.chunk(2, 1)
        slot_weights = x.new_zeros(ends[-1], 1)
        slot_weights[slots.flatten(), 0] = weights.flatten().to(x.dtype)
        scaled = F.silu(gate).mul_(up).mul_(slot_weights)
        y = torch.empty_like(rows)
        for e, (start, end) in enumerate(zip([0] + ends, ends)):
            torch.mm(scaled[start:end], down[e].t(), out=y[start:end])
        ctx.save_for_backward(rows, hidden, slot_weights, scaled, sources, slots, gate_up, down)
        ctx.ends = ends
        return F.embedding_bag(slots, y, mode='sum')

    @staticmethod
    def backward(ctx, dy):
        rows, hidden, slot_weights, scaled, sources, slots, gate_up, down = ctx.saved_tensors
        dy = pad_row(dy).index_select(0, sources)
        d_scaled, d_down = torch.empty_like(scaled), torch.empty_like(down)
        for e, (start, end) in enumerate(zip([0] + ctx.ends, ctx.ends)):
            torch.mm(dy[start:end], down[e], out=d_scaled[start:end])
            torch.mm(dy[start:end].t(), scaled[start:end], out=d_down[e])
        gate, up = hidden.chunk(2, 1)
        sigmoid = torch.sigmoid(gate)
        activated = gate * sigmoid
        d_weights = torch.linalg.vecdot(d_scaled, activated * up).float()
        d_scaled.mul_(slot_weights)
        d_hidden = torch.cat((d_scaled * up * (sigmoid + activated * (1 - sigmoid)), d_scaled * activated), 1)
        d_rows, d_gate_up = torch.empty_like(rows), torch.empty_like(gate_up)
        for e, (start, end) in enumerate(zip([0] + ctx.ends, ctx.ends)):
            torch.mm(d_hidden[start:end], gate_up[e], out=d_rows[start:end])
            torch.mm(d_hidden[start:end].t(), rows[start:end], out=d_gate_up[e])
        return (F.embedding_bag(slots, d_rows, mode='sum'), None, d_weights[slots.flatten()].view(slots.shape),
                d_gate_up, d_down)


def pad_row(x):
    return torch.cat((x, x.new_zeros(1, x.shape[1])))


class NextTokenLoss(torch.autograd.Function):
    """Mean cross-entropy of targets [N] under x [N, D] times output [V, D]; both gradients are made on the way."""

    @staticmethod
    def forward(ctx, x, output, targets):
        total = x.new_zeros((), dtype=torch.float32)
        dx, d_output = torch.empty_like(x), torch.zeros_like(output)
        for start in range(0, x.shape[0], 512):
            rows, wanted = x[start:start + 512], targets[start:start + 512].unsqueeze(1)
            logits = (rows @ output.t()).float()
            norm = logits.logsumexp(1, keepdim=True)
            total += (norm - logits.gather(1, wanted)).sum()
            probs = logits.sub_(norm).exp_().scatter_add_(1, wanted, torch.full_like(norm, -1.0)).to(x.dtype)
            torch.mm(probs, output, out=dx[start:start + 512])
            d_output.addmm_(probs.t(), rows)
        ctx.save_for_backward(dx, d_output)
        ctx.tokens = x.shape[0]
        return total / x.shape[0]

    @staticmethod
    def backward(ctx, d_loss):
        dx, d_output = ctx.saved_tensors
        return dx * (d_loss / ctx.tokens), d_output * (d_loss / ctx.tokens), None


class Layer(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        d, e, f = shape.width, shape.experts, shape.expert_width
        self.shape = shape
        self.attn_norm = nn.Parameter(torch.ones(d))
        self.ffn_norm = nn.Parameter(torch.ones(d))
        self.qkv = nn.Parameter(torch.randn(3, d, d) * d ** -0.5)
        self.attn_output = nn.Parameter(torch.zeros(d, d))
        if shape.qkv_bias:
            self.qkv_bias = nn.Parameter(torch.zeros(3, d))
        if shape.qk_norm:
            self.q_norm = nn.Parameter(torch.ones(d))
            self.k_norm = nn.Parameter(torch.ones(d))
        self.router = nn.Parameter(torch.randn(e, d) * d ** -0.5)
        self.gate_up = nn.Parameter(torch.randn(e, 2, f, d) * d ** -0.5)
        self.down = nn.Parameter(torch.randn(e, d, f) * f ** -0.5)
        if shape.shared_width:
            s = shape.shared_width
            self.shared_router = nn.Parameter(torch.zeros(1, d))
            self.shared_gate_up = nn.Parameter(torch.randn(2, s, d) * d ** -0.5)
            self.shared_down = nn.Parameter(torch.zeros(d, s))

    def attention(self, x, rope, mask, dtype):
        shape, (batch, time, d) = self.shape, x.shape
        q, k, v = (F.rms_norm(x, (d,), self.attn_norm, shape.rms_eps).to(dtype)
                   @ self.qkv.to(dtype).flatten(0, 1).t()).chunk(3, 2)
        if shape.qkv_bias:
            q, k, v = (part + bias.to(dtype) for part, bias in zip((q, k, v), self.qkv_bias))
        if shape.qk_norm:
            q = F.rms_norm(q.float(), (d,), self.q_norm, shape.rms_eps)
            k = F.rms_norm(k.float(), (d,), self.k_norm, shape.rms_eps)
        q, k, v = (part.view(batch, time, shape.heads, -1).transpose(1, 2) for part in (q, k, v))
        q, k = rotate(q.float(), rope).to(dtype), rotate(k.float(), rope).to(dtype)
        # written out: twice as fast on one core in bfloat16 as torch's fused attention, forward and backward together
        y = ((q @ k.mT) * q.shape[-1] ** -0.5 + mask).softmax(3) @ v
        return y.transpose(1, 2).reshape(batch, time, d) @ self.attn_output.to(dtype).t()

    def forward(self, x, rope, mask, dtype):
        """x [batch, time, width] float32; returns the next x and the router's logits [batch * time, experts]."""
        x = x + self.attention(x, rope, mask, dtype).float()
        rows = F.rms_norm(x, x.shape[-1:], self.ffn_norm, self.shape.rms_eps).flatten(0, 1)
        logits = rows @ self.router.t()
        weights, ids = logits.softmax(1).topk(self.shape.top_k, 1)
        rows = rows.to(dtype)
        y = Experts.apply(rows, ids, weights, self.gate_up.to(dtype).flatten(1, 2), self.down.to(dtype)).float()
        if self.shape.shared_width:
            gate, up = (rows @ self.shared_gate_up.to(dtype).flatten(0, 1).t()).chunk(2, 1)
            shared = (F.silu(gate) * up) @ self.shared_down.to(dtype).t()
            y = y + torch.sigmoid(rows @ self.shared_router.to(dtype).t()).float() * shared.float()
        return x + y.view_as(x), logits


def rotate(x, rope):
    """Rotary position embedding of x [batch, heads, time, head width], first half against second half."""
    cos, sin = rope
    a, b = x.chunk(2, 3)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), 3)


class ReferenceModel(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Parameter(torch.randn(VOCAB, shape.width) * EMBEDDING_STD)
        self.output = nn.Parameter(torch.zeros(VOCAB, shape.width))
        self.output_norm = nn.Parameter(torch.ones(shape.width))
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))

    def forward(self, tokens, targets, exact=False):
        """Tokens and targets [batch, time]; mean cross-entropy in nats and the router logits of each layer."""
        dtype = torch.float32 if exact else torch.bfloat16
        half = self.shape.width // self.shape.heads // 2
        angles = torch.arange(tokens.shape[1])[:, None] * self.shape.rope_base ** (-torch.arange(half) / half)
        rope = angles.cos(), angles.sin()
        mask = torch.full((tokens.shape[1],) * 2, -1e9, dtype=dtype).triu(1)
        x, routers = F.embedding(tokens, self.token_embd), []
        for layer in self.layers:
            x, logits = layer(x, rope, mask, dtype)
            routers.append(logits)
        x = F.rms_norm(x, x.shape[-1:], self.output_norm, self.shape.rms_eps).flatten(0, 1)
        return NextTokenLoss.apply(x.to(dtype), self.output.to(dtype), targets.flatten()), routers
