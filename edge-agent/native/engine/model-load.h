// Loads a model into llama.cpp without reading its experts; dense tensors land in anonymous memory.
//
// First the direct way: llama.cpp builds the model from the metadata and asks for each tensor; dense ones are read
// into place, experts are left untouched. It asks that way for optional tensors too that the file does not have (a
// tied output, a fused matrix), which only the stock loader knows how to do without. So where it asks for a tensor
// that is not in the file as it is, the model is loaded again by the stock loader, through a stream of ours that
// serves every byte but those of experts; the pages it scribbles on instead are given back as it goes.
#pragma once

#include "expert-memory.h"

#include "llama.h"

// `memory` must have been initialised from `file`. MODEL_FORMAT with llama.cpp's own words, IO, CANCELLED.
engine_status model_load(const model_file & file, expert_memory & memory, bool (*cancelled)(void *), void * cancelled_data,
                         llama_model *& out);

// The second way alone; for tests.
engine_status model_load_by_stream(const model_file & file, expert_memory & memory, bool (*cancelled)(void *), void * cancelled_data,
                                   llama_model *& out);
