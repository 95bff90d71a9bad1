// Tiny models with random weights, one per way of routing that llama.cpp knows, written as GGUF for tests.
//
// Which tensors an architecture has, and of which shape, is asked of llama.cpp itself: it makes a model of the metadata
// alone and names each tensor it needs, and of the optional ones those that `optional` offers. So the table in
// tiny-model.cpp holds no more than a model's own configuration would, and how it routes; the tests check the engine
// against that.
#pragma once

#include "engine.h"

#include "ggml.h"
#include "gguf.h"

enum tiny_gate { GATE_SOFTMAX, GATE_SIGMOID, GATE_LOGITS };  // GATE_LOGITS: the weights are a softmax over the selected

struct tiny_pair {
    std::string key;              // after "<architecture>."
    gguf_type type = GGUF_TYPE_UINT32;
    double number = 0;
    std::vector<uint32_t> list;   // one per layer, in place of `number`
};

struct tiny_tensor {
    std::string name;
    std::vector<int64_t> ne;
};

struct tiny_model {
    std::string name;             // of the test case
    std::string architecture;
    int layers = 3;
    int experts = 16;
    int top_k = 4;
    int width = 64;
    int expert_width = 64;
    std::vector<tiny_pair> pairs;     // beside and before what every model gets
    std::vector<std::string> optional;  // tensors that llama.cpp would do without, of every block where it takes them
    std::vector<tiny_tensor> extra;     // beside what llama.cpp asks for
    int predicting_layers = 0;        // blocks past the last one that the graph leaves out
    ggml_type expert_type = GGML_TYPE_Q8_0;

    // how it routes
    tiny_gate gate = GATE_SOFTMAX;
    engine_select_by select_by = SELECT_BY_LOGITS;
    int groups = 0, groups_used = 0;
    bool normalises = false;
    std::vector<int32_t> moe_layers;  // empty: all
};

// Every architecture that the tests run.
std::vector<tiny_model> tiny_models();
// The one of that name.
tiny_model tiny_model_named(const std::string & name);

// Writes the model; the same call writes the same file. Exits on a failure.
void tiny_model_write(const tiny_model & model, const std::string & path);
