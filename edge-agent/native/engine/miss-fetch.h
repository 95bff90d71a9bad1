// The way of a miss: from flash into place, timed, and into the event ring. Part of a pass of the layer hook.
//
// The reads of a layer go on while its graph is computed: the matrices of all missing experts are asked for in the order
// in which the graph multiplies by them, and the graph waits before each multiplication for that matrix alone. Where it has to
// wait, and matrices are large, it does not stand still meanwhile: the multiplication is done expert by expert as they are there
// (expert-multiply.h), those in memory first, and the graph's own node then computes nothing.
#pragma once

#include "layer-hook.h"

// Starts to bring `hook.missed[0..n)` into memory and fills their `hook.events`. Experts that are present already (kept
// by an engine that keeps all) read nothing. To be finished before the next layer begins.
void miss_fetch_begin(layer_hook & hook, int layer, int n);

inline bool miss_fetch_under_way(const layer_hook & hook) { return hook.fetch.layer >= 0; }

// Before the graph computes `node`, all before it having been computed: where that multiplies by a matrix of the layer, waits
// until it has arrived, or does it in its place. Where the fetch is still under way then, `miss_fetch_after` has to follow when
// the graph has gone past the node. Past the last matrix the fetch is finished.
void miss_fetch_before(layer_hook & hook, ggml_tensor * node);
void miss_fetch_after(layer_hook & hook);

// Waits for all of it. Marks the experts present, completes their events, numbers them and pushes them into `hook.ring`,
// where there is one. An expert that could not be read in full is taken back from the logical cache and gives its
// memory back, and `hook.error` names the tensor.
void miss_fetch_finish(layer_hook & hook);

// Times and read counts of miss `i` of a layer, from its parts.
void miss_event_gather(layer_hook & hook, int layer, int i);
// Numbers it and pushes it into the ring.
void miss_event_report(layer_hook & hook, int layer, int i);
