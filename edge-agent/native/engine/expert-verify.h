// Verification of what was read, against the digests of a packed file: an expert when all of it has arrived and before
// anything uses it, the header and the other tensors before the model is loaded.
#pragma once

#include "expert-memory.h"
#include "model-checksums.h"

// All bytes of the expert are in place; says whether they are right. IO names the expert. Does not allocate.
engine_status expert_verify(const model_checksums & checksums, const expert_memory & memory, const model_info & info, int layer, int expert);

// The same a part at a time, for callers that hold a lock which others wait for.
struct expert_digesting {
    sha256_stream stream;
    int place = -1;          // whose bytes come next; < 0: nothing has been hashed
    uint64_t done = 0;       // of that place
};
// Hashes up to `budget` bytes more and takes them off it. False: there are more; true: that was all, and `out` says what
// expert_verify would.
bool expert_verify_some(expert_digesting & d, const model_checksums & checksums, const expert_memory & memory, const model_info & info, int layer,
                        int expert, uint64_t & budget, engine_status & out);

// Reads the header and every tensor that loading will read, which then comes from the page cache. IO names the tensor. CANCELLED.
engine_status dense_verify(const model_file & file, const model_checksums & checksums, bool (*cancelled)(void *), void * cancelled_data);
