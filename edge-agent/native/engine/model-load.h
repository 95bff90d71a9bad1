// Loads a model into llama.cpp without reading its experts. llama.cpp reads the file through a stream of ours, which
// serves every byte but those of expert tensors: these it passes over, so the reserved pages stay untouched and dense
// tensors land in anonymous memory. The loader itself is the stock one, with all of its checks.
#pragma once

#include "expert-memory.h"

#include "llama.h"

// `memory` must have been initialised from `file`. MODEL_FORMAT with llama.cpp's own words, IO, CANCELLED.
engine_status model_load(const model_file & file, expert_memory & memory, bool (*cancelled)(void *), void * cancelled_data,
                         llama_model *& out);
