// The way of a miss: from flash into place, timed, and into the event ring. Part of a pass of the layer hook.
#pragma once

#include "layer-hook.h"

// Makes `hook.missed[0..n)` present and fills their `hook.events`, stall charges included. Experts that are present
// already (kept by an engine that keeps all) read nothing. An expert that could not be read in full is taken back from
// the logical cache, and `hook.error` names the tensor.
void miss_fetch_read(layer_hook & hook, int layer, int n);

// Numbers the misses that `miss_fetch_read` brought and pushes them into `hook.ring`, which must not be null.
void miss_fetch_report(layer_hook & hook, int layer, int n);
