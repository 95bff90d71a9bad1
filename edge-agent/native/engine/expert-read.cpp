#include "expert-read.h"

#include <algorithm>
#include <cstring>

void expert_reads_init(expert_reads & reads, expert_memory & memory, flash_reader & reader) {
    reads.memory = &memory;
    reads.reader = &reader;
    reads.requests.reset(new flash_request[memory.layers.size() * size_t(memory.experts) * EXPERT_MATRICES]);
    reads.turns.clear();
    for (const auto & layer : memory.layers) {
        std::vector<int32_t> turns;
        for (int p = 0; p < layer.n_places; p++) turns.push_back(p);
        reads.turns.push_back(turns);
    }
}

void expert_reads_note_turn(expert_reads & reads, int layer, const char * tensor) {
    const layer_memory & memory = reads.memory->layers[size_t(layer)];
    std::vector<int32_t> & turns = reads.turns[size_t(layer)];
    for (auto at = turns.begin(); at != turns.end(); ++at) {
        if (strcmp(memory.places[*at].tensor, tensor) == 0) {
            std::rotate(at, at + 1, turns.end());
            return;
        }
    }
}

int expert_reads_place(const expert_reads & reads, int layer, const ggml_tensor * tensor) {
    const layer_memory & memory = reads.memory->layers[size_t(layer)];
    for (int p = 0; p < memory.n_places; p++) {
        if (memory.places[p].base == tensor->data) return p;
    }
    return -1;
}

void expert_read_set(expert_reads & reads, int layer, int expert, int place) {
    const expert_place & from = reads.memory->layers[size_t(layer)].places[place];
    const uint64_t at = uint64_t(expert) * from.bytes;
    flash_request_set(expert_read_part(reads, layer, expert, place), from.file_offset + at, from.bytes, from.base + at, from.tensor);
}

void expert_read_begin(expert_reads & reads, int layer, int expert) {
    expert_memory_hold(*reads.memory, layer, expert);
    for (int p = 0; p < reads.memory->layers[size_t(layer)].n_places; p++) expert_read_set(reads, layer, expert, p);
}

void expert_read_withdraw(expert_reads & reads, int layer, int expert) {
    for (const int32_t p : reads.turns[size_t(layer)]) flash_request_withdraw(expert_read_part(reads, layer, expert, p));
}

void expert_read_wait(expert_reads & reads, int layer, int expert) {
    for (const int32_t p : reads.turns[size_t(layer)]) flash_reader_wait(*reads.reader, expert_read_part(reads, layer, expert, p));
}

bool expert_read_settled(expert_reads & reads, int layer, int expert) {
    for (const int32_t p : reads.turns[size_t(layer)]) {
        if (!flash_request_settled(expert_read_part(reads, layer, expert, p))) return false;
    }
    return true;
}

bool expert_read_done(expert_reads & reads, int layer, int expert) {
    for (const int32_t p : reads.turns[size_t(layer)]) {
        if (!flash_request_done(expert_read_part(reads, layer, expert, p))) return false;
    }
    return true;
}

engine_status expert_read_status(expert_reads & reads, int layer, int expert) {
    for (const int32_t p : reads.turns[size_t(layer)]) {
        const engine_status status = flash_request_status(expert_read_part(reads, layer, expert, p));
        if (failed(status)) return status;
    }
    return {};
}
