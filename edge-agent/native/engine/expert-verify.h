// Verification of what was read, against the digests of a packed file: an expert when all of it has arrived and before
// anything uses it, the header and the other tensors before the model is loaded.
#pragma once

#include "expert-memory.h"
#include "model-checksums.h"

// All bytes of the expert are in place; says whether they are right. IO names the expert. Does not allocate.
engine_status expert_verify(const model_checksums & checksums, const expert_memory & memory, const model_info & info, int layer, int expert);

// Reads the header and every tensor that loading will read, which then comes from the page cache. IO names the tensor. CANCELLED.
engine_status dense_verify(const model_file & file, const model_checksums & checksums, bool (*cancelled)(void *), void * cancelled_data);
