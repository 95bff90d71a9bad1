// Reads of whole experts: one flash request for each matrix of each expert, and the order in which a layer's graph
// multiplies by its matrices, which is the order to read them in.
#pragma once

#include "expert-memory.h"
#include "flash-reader.h"

struct expert_reads {
    expert_memory * memory = nullptr;
    flash_reader * reader = nullptr;
    std::unique_ptr<flash_request[]> requests;     // layers x experts x EXPERT_MATRICES
    std::vector<std::vector<int32_t>> turns;       // per layer: places in the order of the graph
};

// Turns are those of the file until the graph has been seen.
void expert_reads_init(expert_reads & reads, expert_memory & memory, flash_reader & reader);
// The graph of `layer` multiplies by this matrix, after those noted before. Others follow in the order of the file.
void expert_reads_note_turn(expert_reads & reads, int layer, const char * tensor);
// The place whose matrix is `tensor`, -1 where it is none of the layer's.
int expert_reads_place(const expert_reads & reads, int layer, const ggml_tensor * tensor);

inline flash_request & expert_read_part(expert_reads & reads, int layer, int expert, int place) {
    return reads.requests[(size_t(layer) * size_t(reads.memory->experts) + size_t(expert)) * EXPERT_MATRICES + size_t(place)];
}

// Holds the expert's memory, with nothing read yet; then its parts can be started. Nothing of it may be in flight.
void expert_read_begin(expert_reads & reads, int layer, int expert);
// What a part is to read, with nothing read yet. Nothing of it may be in flight.
void expert_read_set(expert_reads & reads, int layer, int expert, int place);
// Takes what no lane has begun off offer; what is in flight goes on.
void expert_read_withdraw(expert_reads & reads, int layer, int expert);
void expert_read_wait(expert_reads & reads, int layer, int expert);
bool expert_read_settled(expert_reads & reads, int layer, int expert);
bool expert_read_done(expert_reads & reads, int layer, int expert);
// The first failure among the settled parts.
engine_status expert_read_status(expert_reads & reads, int layer, int expert);
