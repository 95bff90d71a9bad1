// Widens every expert's hidden width without changing what the model computes, so that a small model gets experts of
// a realistic size. With h = act(gate x) * (up x), y = down h: new gate rows are zeros, so the new entries of h are
// act(0) * anything = 0, and the new up rows and down columns may hold random values, which keeps the file from being
// compressible. Values of the original and padding never share a quantisation block.
#pragma once

#include "status.h"

// Writes `target` in full, aligned to 4096, and fails if it exists; an unfinished file is removed. Streams with less
// than 100 MB of memory. `progress` gets bytes. `bytes` is the size written.
// BAD_ARGUMENT (width not above the present one, or no multiple of the block size; target exists), MODEL_FORMAT (merged
// gate_up matrices, expert biases, no width of its own in the metadata), IO.
engine_status model_widen(const std::string & source, const std::string & target, int64_t width,
                          const progress_callback & progress, uint64_t & bytes);
