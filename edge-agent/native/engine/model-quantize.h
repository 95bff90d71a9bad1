// Quantises the experts of a model through ggml, all other tensors as they are. Every expert tensor gets the type that was
// asked for or the call fails: unlike llama.cpp's own quantiser, no type is put in the place of another that does not fit.
#pragma once

#include "status.h"

// BAD_ARGUMENT (unknown type; a type whose blocks do not fit a row, with those that do; source quantised already and not
// `requantize`; target exists), MODEL_FORMAT, NOT_MOE, IO, CANCELLED.
engine_status model_quantize(const std::string & source, const std::string & target, const quantize_options & options,
                             const progress_callback & progress, quantize_result & out);
