// What happens at one MoE layer of a pass when its experts have been chosen: the scores are taken, each row is routed and its
// experts are looked up in the cache, the ids are rewritten, what is missing is asked for, and the next layer's is guessed.
// When that is, is the layer hook's business. Part of a pass of the layer hook.
#pragma once

#include "layer-hook.h"

// Copies the scores that `tensor` holds, [experts, rows].
void layer_take_scores(layer_hook & hook, int layer, const ggml_tensor * tensor);

// The ids in `topk`, [K, rows], become those that are used.
void layer_route(layer_hook & hook, int layer, const ggml_tensor * topk);

// Whether the layer's policy leaves experts out in this pass; then their gate weights, [1, K, rows], have to go as well.
bool layer_drops_experts(const layer_hook & hook, int layer);
void layer_drop_weights(layer_hook & hook, const ggml_tensor * weights);

// Gives back what only the last layer needed.
void layer_release_surplus(layer_hook & hook);

// The first error of a pass stays.
void layer_stop_with(layer_hook & hook, const engine_status & status);
