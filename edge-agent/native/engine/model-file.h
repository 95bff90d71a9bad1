// What a model file holds, checked: architecture, MoE layers, where each layer's expert matrices lie, dense bytes.
// Expert matrices are the tensors blk.<l>.ffn_{gate,up,down,gate_up}_exps.weight, [in, out, experts], each expert's
// matrix contiguous.
#pragma once

#include "model-shards.h"

enum { EXPERT_MATRICES = 4 };

struct expert_matrix {
    std::string tensor;          // name in the file
    uint64_t offset = 0;         // of expert 0: its position (model-shards.h)
    uint64_t expert_bytes = 0;   // expert e lies at offset + e * expert_bytes
};

struct expert_layer {
    int32_t block = 0;                   // block index
    std::vector<expert_matrix> matrices; // two or three
    uint64_t expert_bytes = 0;           // sum over matrices
};

struct model_file {
    gguf_header header;                  // of the first file, with the tensors of all; their offsets are positions
    model_info info;
    std::vector<expert_layer> layers;    // in info.moe_layers order
};

// `path` is the model's file or the first of its files. MODEL_FORMAT, NOT_MOE, IO. Models whose MoE layers differ in top-K
// are MODEL_FORMAT.
engine_status model_file_read(const std::string & path, model_file & out);

// True for the name of an expert matrix; fills the block index and the kind ("gate", "up", "down", "gate_up").
bool expert_tensor_name(const std::string & name, int32_t & block, std::string & kind);

// The pattern that picks the same tensors in llama.cpp's buffer type overrides.
#define EXPERT_TENSOR_PATTERN "^blk\\.[0-9]+\\.ffn_(gate|up|down|gate_up)_exps\\.weight$"
