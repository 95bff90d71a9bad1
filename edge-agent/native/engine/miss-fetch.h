// The way of a miss: from flash into place, timed, and into the event ring. Part of a pass of the layer hook.
//
// The reads of a layer go on while its graph is computed: the matrices of all missing experts are asked for in the order
// in which the graph multiplies by them, and the graph waits before each multiplication for that matrix alone.
#pragma once

#include "layer-hook.h"

// Starts to bring `hook.missed[0..n)` into memory and fills their `hook.events`. Experts that are present already (kept
// by an engine that keeps all) read nothing. To be finished before the next layer begins.
void miss_fetch_begin(layer_hook & hook, int layer, int n);

inline bool miss_fetch_under_way(const layer_hook & hook) { return hook.fetch.layer >= 0; }

// Before the graph computes `node`: where that multiplies by a matrix of the layer, waits until it has arrived. The wait
// for the last one finishes the fetch.
void miss_fetch_before(layer_hook & hook, const ggml_tensor * node);

// Waits for all of it. Marks the experts present, completes their events, numbers them and pushes them into `hook.ring`,
// where there is one. An expert that could not be read in full is taken back from the logical cache and gives its
// memory back, and `hook.error` names the tensor.
void miss_fetch_finish(layer_hook & hook);

// Times and read counts of miss `i` of a layer, from its parts.
void miss_event_gather(layer_hook & hook, int layer, int i);
// Numbers it and pushes it into the ring.
void miss_event_report(layer_hook & hook, int layer, int i);
