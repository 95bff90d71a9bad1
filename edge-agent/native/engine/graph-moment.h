// Acts on a layer's choice of experts without stopping the graph. A stop ends one piece of the graph and starts the next on
// all threads, which on a small model costs more than what is done there. llama.cpp also asks whether to abort, on the
// first thread, after each node and before any thread goes on to the next; and one row of ids is sorted by that thread
// alone, so that the ids may be read and rewritten then. What does not tell is which node it was. So a pass that stops at a
// layer's ids notes how many nodes had been announced and how often the question had come, and a later pass of the same
// graph acts when the question comes that many times.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <vector>

struct layer_moment {
    int32_t announced = 0, asked = 0;    // when the layer's ids had been sorted; 0: not known
    int32_t quiet = 0;                   // tokens in a row, decoded through the real cache, of which the layer missed nothing
    ggml_tensor * topk = nullptr;        // valid only while the layer is due
};

struct graph_moments {
    std::vector<layer_moment> layers;    // per MoE layer
    std::vector<int32_t> due;            // layers in order of the graph; room for all
    int32_t due_count = 0, due_next = 0;
    int32_t announced = 0, asked = 0;    // of the pass
    bool node_by_node = false;           // from here on nodes that go together may have been asked about one by one
    const ggml_tensor * last = nullptr;  // announced last
    const ggml_tensor * before = nullptr;  // announced before it
};

void graph_moments_init(graph_moments & moments, int layers);
void graph_moments_begin(graph_moments & moments);

// The graph is about to compute `node`, alone or with others.
inline void graph_moments_announce(graph_moments & moments, const ggml_tensor * node) {
    moments.announced++;
    moments.before = moments.last;
    moments.last = node;
}

// The graph has stopped at `topk`, the ids of `layer`.
void graph_moments_learn(graph_moments & moments, int layer, const ggml_tensor * topk);
// `topk` has just been announced. True if the layer will be due within the graph; false where it has to stop there.
bool graph_moments_arm(graph_moments & moments, int layer, ggml_tensor * topk);

// The graph asks whether to abort. The layer whose ids have just been sorted; -1: none.
inline int graph_moments_ask(graph_moments & moments) {
    moments.asked++;
    if (moments.due_next == moments.due_count) return -1;
    const int layer = moments.due[size_t(moments.due_next)];
    if (moments.layers[size_t(layer)].asked != moments.asked) return -1;
    moments.due_next++;
    return layer;
}

// Whether `topk` holds ids that have been sorted by the scores they come from, which is true of no other moment.
bool graph_moments_sorted(const ggml_tensor * topk);
