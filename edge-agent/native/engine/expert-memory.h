// Where experts live: reserved address space in which only the pages of present experts are backed by memory.
//
// It is a ggml host buffer type that llama.cpp fills with the expert tensors. The CPU's mul_mat_id touches only the
// experts a token selected, so it is enough that these are present in time. Pages are anonymous, without swap
// reservation and without huge pages (a 2 MiB page would hold the neighbours of an evicted expert in memory).
// Invariant: a page is given back only if no expert that has a byte in it is held, so releasing an expert never harms a
// neighbour that shares its first or last page, nor a read into it that is under way.
//
// A page that comes from the kernel is zeroed first, which costs as much processor time as the read into it. So, where
// matrices are whole pages, the pages of one that is released are kept as a spare and moved (mremap) under the next one of
// the same size that is read. Spares never take the total above `most_bytes`.
#pragma once

#include "model-file.h"

#include "ggml-backend-impl.h"

#include <atomic>

struct expert_place {
    char * base = nullptr;       // expert 0; page aligned; null until llama.cpp has placed the tensor
    uint64_t bytes = 0;          // of one expert
    uint64_t file_offset = 0;
    char tensor[64] = "";
};

struct layer_memory {
    expert_place places[EXPERT_MATRICES];
    int n_places = 0;
    uint64_t expert_bytes = 0;
    std::vector<uint8_t> present;   // 0 or 1 per expert: all of its bytes are in place
    std::vector<uint8_t> held;      // per expert, a bit per place: some of that matrix is in place or on its way
};

struct spare_matrix { int32_t layer, expert, place; };

struct expert_memory {
    ggml_backend_buffer_type type;  // hand out as &memory.type; its context points back here
    std::vector<layer_memory> layers;
    int experts = 0;
    size_t page = 4096;
    std::atomic<int64_t> resident_bytes{0};  // of all that is held
    int64_t peak_bytes = 0;         // most that were resident since the owner of the cache last set it
    bool moves_pages = false;       // matrices are whole pages, few enough to be mappings of their own
    int64_t most_bytes = 0;         // spares included, over all layers; 0: no spares
    int64_t passing_bytes = 0;      // on top of that while a prompt is read, see miss-stream.h
    int64_t spare_bytes = 0;
    std::vector<spare_matrix> spares;  // backed by pages, held by nobody; oldest first; reserved, never grows
    bool placement_failed = false;
};

// `memory` must not move afterwards and must outlive every buffer of its type.
void expert_memory_init(expert_memory & memory, const model_file & file);

// MODEL_FORMAT where llama.cpp did not place a matrix that the file has.
engine_status expert_memory_check(const expert_memory & memory);

// How much may be in memory before the pages of what is released go back to the kernel.
void expert_memory_set_most(expert_memory & memory, int64_t bytes);
void expert_memory_set_passing(expert_memory & memory, int64_t bytes);

// Before llama.cpp places the tensors anew.
void expert_memory_forget_places(expert_memory & memory);

// Before anything is read into its place.
void expert_memory_hold(expert_memory & memory, int layer, int expert);
// The same of one matrix.
void expert_memory_hold_part(expert_memory & memory, int layer, int expert, int place);
// All of it has been read.
void expert_memory_mark(expert_memory & memory, int layer, int expert);
// Nothing may be on its way. Forgets the expert and gives back its pages, save those that a held neighbour shares.
void expert_memory_release(expert_memory & memory, int layer, int expert);
// The same of one matrix; the expert is not whole any more.
void expert_memory_release_part(expert_memory & memory, int layer, int expert, int place);
// Gives back every page and forgets all experts; also what a loader scribbled there.
void expert_memory_clear(expert_memory & memory);

// For callers with a mapping of their own (tests): gives back the pages of expert `e` in an array of `experts` of
// `bytes` each at page-aligned `base`, sparing pages shared with an expert that has a bit of `mask` in `held`.
void expert_pages_release(char * base, uint64_t bytes, int experts, const uint8_t * held, int e, size_t page, uint8_t mask = 0xff);
