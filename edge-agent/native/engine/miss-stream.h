// A prompt's way through a layer of which it misses experts, however few of them fit in memory together. Part of a pass of
// the layer hook.
//
// The experts that a micro-batch needs pass through matrix by matrix: while one is multiplied by the rows that chose it
// (expert-multiply.h), the next are read into the room there is, and one whose expert will not be a member of the cache gives
// its room up as soon as it has been used. So each matrix is read once however many tokens there are, and of what a layer
// holds beyond its capacity no more than `bytes` is there at any time. The MUL_MAT_ID nodes of the graph, whose products are
// there already, compute nothing.
//
// Of each matrix the experts come in this order: members that stay; members that leave; those that only pass; those that
// become members. What enters fills room that those before it have left, so there is always room for the next to be read:
// for the last to pass there is that of the down matrices yet to enter. Where nobody enters, and `bytes` are fewer than a
// matrix, members leave memory (not the cache) at first and enter it again at last.
#pragma once

#include "layer-hook.h"

// Starts to read `hook.missed[0..n)` and fills their `hook.events`. To be finished before the next layer begins.
void miss_stream_begin(layer_hook & hook, int layer, int n);

inline bool miss_stream_under_way(const layer_hook & hook) { return hook.stream.layer >= 0; }

// Before the graph computes `node`, all before it having been computed: where that multiplies by a matrix of the layer, does
// it in its place. `miss_stream_after` has to follow when the graph has gone past it.
void miss_stream_before(layer_hook & hook, ggml_tensor * node);
void miss_stream_after(layer_hook & hook);

// Marks new members present, gives back the rest, and completes and reports the events as `miss_fetch_finish` does. Also where
// the graph has ended early: then members of which not all was read are taken back from the logical cache.
void miss_stream_finish(layer_hook & hook);
