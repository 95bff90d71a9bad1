#!/usr/bin/env python3
"""Trains a reference model from a folder of plain text on one CPU core, and leaves a checkpoint that export.py writes as GGUF.

    python train.py --texts FOLDER --tokenizer ../fixtures/tinymoe-17m-q8_0.gguf --out RUN --minutes 90

The learning rate is constant after a short warm-up and falls linearly to zero over the last part of the budget (minutes of
the clock, or tokens), so a run may be as short or as long as one likes. Matrices are trained by Muon (momentum, then the
nearest orthogonal matrix by Newton-Schulz iteration; Jordan et al. 2024), said to need about half of Adam's tokens (arXiv
2502.16982); the embeddings, the output, the routers, norms and biases by Adam. The router is kept in use as OLMoE does it (arXiv
2409.02060): a load balancing loss of 0.01 and a z-loss of 0.001.
"""
import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from model import EMBEDDING_STD, SHAPES, ReferenceModel
from tokenizer import Tokenizer

CONTEXT = 256
BALANCE, ROUTER_Z = 0.01, 0.001
DECAY_SHARE = 0.4
WARMUP_STEPS = 20
CHECKPOINT_SECONDS = 240


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--texts', type=Path, required=True, help='folder of .txt files, one per domain')
    parser.add_argument('--tokenizer', type=Path, required=True, help='GGUF file whose vocabulary is used')
    parser.add_argument('--out', type=Path, required=True, help='folder of the run: tokens, checkpoint, log; continued where it stopped')
    parser.add_argument('--keep-embeddings', action='store_true', help='begin with the embeddings and output of the model in --tokenizer')
    parser.add_argument('--shape', choices=SHAPES, default='olmoe')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='budget by the clock, over all restarts')
    parser.add_argument('--tokens', type=float, default=float('inf'), help='budget in tokens')
    parser.add_argument('--repeat', type=repeats, default={}, metavar='FILE=N,...', help='texts to show more often, as wiki.txt=3')
    parser.add_argument('--batch', type=int, default=16, help='windows of 256 tokens per step')
    parser.add_argument('--muon-lr', type=float, default=0.02)
    parser.add_argument('--adam-lr', type=float, default=0.003)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--seed', type=int, default=1)
    args = parser.parse_args()
    if args.minutes == args.tokens == float('inf'):
        parser.error('give a budget: --minutes or --tokens')
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    train(args)


def repeats(text):
    """'wiki.txt=3,code.txt=2' as a dict; argparse reports the ValueError of anything else."""
    return {name: int(times) for name, times in (part.split('=') for part in text.split(','))}


def train(args):
    windows, held_out = load_windows(args)
    model = ReferenceModel(SHAPES[args.shape])
    if args.keep_embeddings:
        copy_embeddings(model, args.tokenizer)
    optimizer = Optimizer(model, args.muon_lr, args.adam_lr)
    checkpoint, state = args.out / 'checkpoint.pt', {'step': 0, 'tokens': 0, 'seconds': 0.0}
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved['model'])
        optimizer.load_state_dict(saved['optimizer'])
        state = saved['state']
    log = open(args.out / 'log.jsonl', 'a')
    order = np.random.default_rng(args.seed).permutation(len(windows))
    saved_at = time.monotonic()
    started = saved_at - state['seconds']
    recent = []
    while True:
        state['seconds'] = time.monotonic() - started
        spent = max(state['seconds'] / 60 / args.minutes, state['tokens'] / args.tokens)
        if spent >= 1:
            break
        rate = min(1, (state['step'] + 1) / WARMUP_STEPS, (1 - spent) / DECAY_SHARE)
        first = state['step'] * args.batch
        batch = torch.from_numpy(windows[order[np.arange(first, first + args.batch) % len(windows)]].astype(np.int64))
        loss, routers = model(batch[:, :-1], batch[:, 1:])
        (loss + router_loss(routers, model.shape)).backward()
        optimizer.step(rate)
        state['step'] += 1
        state['tokens'] += args.batch * CONTEXT
        recent.append(loss.item())
        if state['step'] % 20 == 0:
            line = {**state, 'rate': round(rate, 4), 'loss': float(np.mean(recent)), **router_use(routers, model.shape)}
            recent = []
            if state['step'] % 400 == 0:
                line['held_out'] = score(model, held_out)
            print(json.dumps(line), file=log, flush=True)
            print(f'step {line["step"]}  {line["tokens"] / 1e6:.2f} M tokens  {line["seconds"] / 60:.1f} min  loss {line["loss"]:.4f}', flush=True)
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            save(checkpoint, args.shape, model, optimizer, state)
            saved_at = time.monotonic()
    save(checkpoint, args.shape, model, optimizer, state)
    print(json.dumps({**state, 'held_out': score(model, held_out)}), file=log, flush=True)


@torch.no_grad()
def copy_embeddings(model, gguf_path):
    tensors = {tensor.name: tensor for tensor in GGUFReader(gguf_path).tensors}
    for name, target in (('token_embd.weight', model.token_embd), ('output.weight', model.output)):
        values = torch.from_numpy(dequantize(tensors[name].data, tensors[name].tensor_type).copy())
        if values.shape != target.shape:
            sys.exit(f'--keep-embeddings: {name} of {gguf_path} is {tuple(values.shape)}, this shape needs {tuple(target.shape)}')
        target.copy_(values)
    # only the direction matters to the first norm; at this size the learning rate suits them
    model.token_embd.mul_(EMBEDDING_STD / model.token_embd.std())


def load_windows(args):
    """All windows of CONTEXT + 1 tokens, and by text's name its last ones, held out."""
    texts = sorted(args.texts.glob('*.txt'))
    if not texts:
        sys.exit(f'--texts: no .txt file in {args.texts}')
    unknown = set(args.repeat) - {text.name for text in texts}
    if unknown:
        sys.exit(f'--repeat: {args.texts} has no {", ".join(sorted(unknown))}')
    tokenizer, windows, held_out = None, [], {}
    for text in texts:
        cached = args.out / f'{text.stem}.tokens.npy'
        if not cached.exists():
            tokenizer = tokenizer or Tokenizer(args.tokenizer)
            np.save(cached, np.array(tokenizer.encode(text.read_bytes().decode()), dtype=np.uint16))
        tokens = np.load(cached)
        count = (len(tokens) - 1) // CONTEXT
        if count < 2:
            sys.exit(f'--texts: {text} has {len(tokens)} tokens, at least {2 * CONTEXT + 1} are needed')
        cut = np.lib.stride_tricks.sliding_window_view(tokens, CONTEXT + 1)[::CONTEXT][:count]
        kept = max(1, min(16, count // 50))
        held_out[text.stem] = cut[-kept:]
        windows += [cut[:-kept]] * args.repeat.get(text.name, 1)
    return np.concatenate(windows), held_out


def router_loss(routers, shape):
    loss = 0
    for logits in routers:
        probs = logits.softmax(1)
        use = torch.bincount(probs.topk(shape.top_k, 1).indices.flatten(), minlength=shape.experts) / logits.shape[0]
        balance = shape.experts / shape.top_k * (use * probs.mean(0)).sum()
        loss = loss + BALANCE * balance + ROUTER_Z * logits.logsumexp(1).square().mean()
    return loss


@torch.no_grad()
def router_use(routers, shape):
    """Of all layers' experts in this batch, the use of the least and of the most used one; 1 is the mean."""
    use = torch.stack([torch.bincount(logits.topk(shape.top_k, 1).indices.flatten(), minlength=shape.experts) / logits.shape[0]
                       for logits in routers]) * shape.experts / shape.top_k
    return {'least_used': round(use.min().item(), 3), 'most_used': round(use.max().item(), 3)}


@torch.no_grad()
def score(model, held_out):
    tokens = {name: torch.from_numpy(windows.astype(np.int64)) for name, windows in held_out.items()}
    return {name: round(model(part[:, :-1], part[:, 1:])[0].item(), 4) for name, part in tokens.items()}


def save(path, shape, model, optimizer, state):
    """Whole or not at all: a run that is stopped while it saves keeps the checkpoint before."""
    partial = path.with_suffix('.partial')
    torch.save({'shape': shape, 'model': model.state_dict(), 'optimizer': optimizer.state_dict(), 'state': state}, partial)
    partial.replace(path)


class Optimizer:
    """Muon for the matrices of attention and experts, Adam for the rest."""

    def __init__(self, model, muon_lr, adam_lr):
        named = dict(model.named_parameters())
        self.matrices = [p for name, p in named.items() if is_matrix(name)]
        self.momenta = [torch.zeros_like(p) for p in self.matrices]
        self.muon_lr, self.adam_lr = muon_lr, adam_lr
        # an embedding is ten times as large as the output's rows and is seen less often
        self.adam = torch.optim.Adam([{'params': [model.token_embd], 'times': 3},
                                      {'params': [p for name, p in named.items() if not is_matrix(name) and name != 'token_embd'], 'times': 1}],
                                     lr=adam_lr, betas=(0.9, 0.95), eps=1e-10)

    @torch.no_grad()
    def step(self, rate):
        for group in self.adam.param_groups:
            group['lr'] = self.adam_lr * group['times'] * rate
        self.adam.step()
        for matrix, momentum in zip(self.matrices, self.momenta):
            momentum.lerp_(matrix.grad, 0.05)
            update = orthogonalized(matrix.grad.lerp(momentum, 0.95))
            matrix.sub_(update, alpha=self.muon_lr * rate * max(1, matrix.shape[-2] / matrix.shape[-1]) ** 0.5)
            matrix.grad = None
        self.adam.zero_grad()

    def state_dict(self):
        return {'adam': self.adam.state_dict(), 'momenta': self.momenta}

    def load_state_dict(self, saved):
        self.adam.load_state_dict(saved['adam'])
        for momentum, value in zip(self.momenta, saved['momenta']):
            momentum.copy_(value)


def is_matrix(name):
    return name.split('.')[-1] in ('qkv', 'attn_output', 'gate_up', 'down', 'shared_gate_up', 'shared_down')


def orthogonalized(gradient):
    """The matrices (all but the last two dimensions count them) with their singular values brought near 1."""
    x = gradient.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in MUON_STEPS:
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).float()


# Quintic iterations of Jordan's Muon: steep at zero, so that five steps do.
MUON_STEPS = [(3.4445, -4.7750, 2.0315)] * 5

if __name__ == '__main__':
    main()
