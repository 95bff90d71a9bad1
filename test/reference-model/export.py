#!/usr/bin/env python3
"""Writes a checkpoint of train.py as GGUF, and checks that llama.cpp computes what PyTorch does.

    python export.py RUN/checkpoint.pt --tokenizer ../fixtures/tinymoe-17m-q8_0.gguf --name tinyolmoe-22m --out model.gguf
    python export.py RUN/checkpoint.pt --tokenizer ... --check ../fixtures/wikitext.txt
    python export.py --random olmoe --tokenizer ... --check ../fixtures/wikitext.txt     (a shape, before it is trained)

Matrices and embeddings take the type asked for, norms, biases and routers stay float32. `--check` writes a float32 file
besides, scores the text with it in PyTorch and by `moefleet engine eval` (which must have been built), and fails where the
cross-entropies differ by 0.0005 nats or more; the file of `--type` is scored too and its difference printed.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch

from model import SHAPES, VOCAB, ReferenceModel
from tokenizer import Tokenizer
from train import CONTEXT

REPO = Path(__file__).resolve().parents[2]
TYPES = {'q8_0': gguf.GGMLQuantizationType.Q8_0, 'f16': gguf.GGMLQuantizationType.F16, 'f32': gguf.GGMLQuantizationType.F32}
FILE_TYPES = {'q8_0': gguf.LlamaFileType.MOSTLY_Q8_0, 'f16': gguf.LlamaFileType.MOSTLY_F16, 'f32': gguf.LlamaFileType.ALL_F32}
# Four digits on the default 8,192 tokens. llama.cpp keeps keys and values in 16 bits, and the last expert chosen is often a
# near tie: disturbing the embeddings of random weights by 1e-4 moves the cross-entropy of 1,024 tokens by up to 2e-3, and
# the two differ by 3e-4 on 8,192. Experts of one layer numbered in another order differ by 1.3e-2.
PARITY_NATS = 5e-4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', type=Path, nargs='?', help='of train.py')
    parser.add_argument('--random', choices=SHAPES, metavar='SHAPE', help='random weights of this shape in place of a checkpoint: ' + ', '.join(SHAPES))
    parser.add_argument('--tokenizer', type=Path, required=True, help='GGUF file the model was trained with the vocabulary of')
    parser.add_argument('--name', default='reference-model', help='general.name of the model')
    parser.add_argument('--type', choices=TYPES, default='q8_0')
    parser.add_argument('--out', type=Path, help='GGUF file to write')
    parser.add_argument('--check', type=Path, metavar='TEXT', help='compare PyTorch and llama.cpp on this text')
    parser.add_argument('--check-tokens', type=int, default=8192, help='a multiple of 256')
    args = parser.parse_args()
    if not args.out and not args.check:
        parser.error('nothing to do: give --out or --check')
    if args.check_tokens <= 0 or args.check_tokens % CONTEXT:
        parser.error(f'--check-tokens: {args.check_tokens} is not a multiple of {CONTEXT}')
    if (args.checkpoint is None) == (args.random is None):
        parser.error('give either a checkpoint or --random SHAPE')
    model = random_model(args.random) if args.random else load(args.checkpoint)
    if args.out:
        write(model, args.out, args)
        print(f'{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters')
    if args.check:
        check(model, args)


def load(checkpoint):
    if not checkpoint.exists():
        sys.exit(f'{checkpoint}: no such checkpoint; train.py writes one')
    saved = torch.load(checkpoint, map_location='cpu')
    model = ReferenceModel(SHAPES[saved['shape']])
    model.load_state_dict(saved['model'])
    return model


@torch.no_grad()
def random_model(shape):
    """What training starts from, with noise on every norm, bias and zero, and experts that matter, so that none may be left
    out or mixed up unseen."""
    torch.manual_seed(1)
    model = ReferenceModel(SHAPES[shape])
    for values in model.parameters():
        if values.min() == values.max():
            values.add_(torch.randn_like(values), alpha=0.1 if values.dim() == 1 or len(values) <= 3 else values.shape[-1] ** -0.5)
    for layer in model.layers:
        layer.router.mul_(2)
        layer.down.mul_(4)
    return model


def write(model, path, args):
    writer = gguf.GGUFWriter(path, model.shape.arch)
    add_metadata(writer, model.shape, args)
    add_tokenizer(writer, args.tokenizer)
    for name, values in tensors(model):
        kind = gguf.GGMLQuantizationType.F32 if stays_f32(name) else TYPES[args.type]
        values = np.ascontiguousarray(values.detach().numpy(), dtype=np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_metadata(writer, shape, args):
    writer.add_name(args.name)
    writer.add_description('Small language model of experts, trained by test/reference-model')
    writer.add_license('apache-2.0')
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.expert_width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.top_k)
    writer.add_expert_feed_forward_length(shape.expert_width)
    if shape.shared_width:
        writer.add_expert_shared_feed_forward_length(shape.shared_width)
    writer.add_vocab_size(VOCAB)
    writer.add_file_type(FILE_TYPES[args.type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_tokenizer(writer, source):
    for field in gguf.GGUFReader(source).fields.values():
        if field.name.startswith('tokenizer.'):
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)


def tensors(model):
    """Names as llama.cpp looks for them, in the order of the layers."""
    yield 'token_embd.weight', model.token_embd
    yield 'output.weight', model.output
    yield 'output_norm.weight', model.output_norm
    for i, layer in enumerate(model.layers):
        named = {'attn_norm.weight': layer.attn_norm, 'attn_output.weight': layer.attn_output,
                 **{f'attn_{part}.weight': layer.qkv[at] for at, part in enumerate('qkv')}}
        if model.shape.qkv_bias:
            named |= {f'attn_{part}.bias': layer.qkv_bias[at] for at, part in enumerate('qkv')}
        if model.shape.qk_norm:
            named |= {'attn_q_norm.weight': layer.q_norm, 'attn_k_norm.weight': layer.k_norm}
        named |= {'ffn_norm.weight': layer.ffn_norm, 'ffn_gate_inp.weight': layer.router, 'ffn_gate_exps.weight': layer.gate_up[:, 0],
                  'ffn_up_exps.weight': layer.gate_up[:, 1], 'ffn_down_exps.weight': layer.down}
        if model.shape.shared_width:
            named |= {'ffn_gate_inp_shexp.weight': layer.shared_router[0], 'ffn_gate_shexp.weight': layer.shared_gate_up[0],
                      'ffn_up_shexp.weight': layer.shared_gate_up[1], 'ffn_down_shexp.weight': layer.shared_down}
        for name, values in named.items():
            yield f'blk.{i}.{name}', values


def stays_f32(name):
    return 'norm' in name or 'ffn_gate_inp' in name or name.endswith('.bias')


@torch.no_grad()
def check(model, args):
    tokens = torch.tensor(Tokenizer(args.tokenizer).encode(args.check.read_bytes().decode())[:args.check_tokens + 1])
    if len(tokens) <= args.check_tokens:
        sys.exit(f'--check: {args.check} has {len(tokens) - 1} tokens to score, --check-tokens asks for {args.check_tokens}')
    windows = tokens[:-1].view(-1, CONTEXT), tokens[1:].view(-1, CONTEXT)
    ours = np.mean([model(x[None], y[None], exact=True)[0].item() for x, y in zip(*windows)])
    with tempfile.TemporaryDirectory() as folder:
        theirs = {}
        for kind in dict.fromkeys(['f32', args.type]):
            args.type = kind
            path = Path(folder) / f'{kind}.gguf'
            write(model, path, args)
            theirs[kind] = engine_cross_entropy(path, args)
    for kind, value in theirs.items():
        print(f'{args.check.name}, {args.check_tokens} tokens: PyTorch f32 {ours:.5f}, llama.cpp {kind} {value:.5f}, difference {value - ours:+.5f}')
    if abs(theirs['f32'] - ours) >= PARITY_NATS:
        sys.exit(f'llama.cpp and PyTorch differ by {abs(theirs["f32"] - ours):.5f} nats, allowed are {PARITY_NATS}')


def engine_cross_entropy(path, args):
    command = ['npx', '--no-install', 'moefleet', 'engine', 'eval', '--model', path, '--text', args.check.resolve(), '--threads', '1',
               '--tokens', str(args.check_tokens), '--context', str(CONTEXT), '--json']
    done = subprocess.run(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f'moefleet engine eval failed on {path.name}; build it with: ./dev build')
    return json.loads(done.stdout)['crossEntropy']


if __name__ == '__main__':
    main()
