// Reading a recorded run (`route_trace` in engine-replay.h), whose bytes are untrusted.
//
// A row of scores at a byte each is float32 minimum and step, little endian, then one level per expert:
// z = minimum + step * level. With `rows_mask` level 255 is a masked expert, of score minus infinity.
#pragma once

#include "engine.h"

enum { TRACE_ROW_HEAD_BYTES = 8, TRACE_MASKED_LEVEL = 255, TRACE_MOST_EXPERTS = 65536 };

// Sizes, ids and capacity changes. BAD_ARGUMENT, CAPACITY.
engine_status route_trace_check(const route_trace & trace);

bool route_trace_has_scores(const route_trace & trace);

// The scores of one event, in place or dequantised into `scratch[experts]`. Needs scores.
const float * route_trace_scores(const route_trace & trace, int layer, int64_t event, float * scratch);

// The model's own choices, as `routes` has them: those, or the largest of the scores. BAD_ARGUMENT where an event has fewer
// than top_k finite scores.
engine_status route_trace_choices(const route_trace & trace, std::vector<int32_t> & out);

// Experts of the event at `ids`: those before the first -1.
inline int route_trace_used(const int32_t * ids, int k) {
    int n = 0;
    while (n < k && ids[n] >= 0) n++;
    return n;
}
