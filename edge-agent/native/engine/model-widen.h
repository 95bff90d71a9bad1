// Widens every expert's hidden width without changing what the model computes, so that a small model gets experts of
// a realistic size. With h = act(gate x + b) * (up x + c), y = down h + d: new gate rows and their biases are zeros, so
// the new entries of h are act(0) * anything = 0 for the activations that experts have (SiLU, GELU, ReLU), and the new up
// rows and down columns may hold random values, which keeps the file from being compressible. Values of the original and
// padding never share a quantisation block. Padding is written in full, without holes, and is the same on every call.
#pragma once

#include "status.h"

// Exactly one of the widths and sizes of `options` is set. A size stands for the least width that reaches it and puts each
// expert's matrices on whole pages, where the model's shapes have such a width.
// BAD_ARGUMENT (width not above the present one, or no multiple of the block size; target exists), MODEL_FORMAT (expert
// tensors of an unknown kind, no width of its own in the metadata), IO, CANCELLED.
engine_status model_widen(const std::string & source, const std::string & target, const widen_options & options,
                          const progress_callback & progress, widen_result & out);
