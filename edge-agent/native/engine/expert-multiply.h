// Some experts' share of a multiplication of the graph. A MUL_MAT_ID node multiplies by every expert that any of its rows has
// chosen, so all of them have to be in memory at once. Here the rows that chose one expert, or the slots of one token whose
// experts are there already, are gathered, multiplied with llama.cpp's own MUL_MAT_ID, and put where the node would have put
// them. The result is the node's, bit for bit: each of its numbers is one row times one column, and what kernel multiplies
// them depends on nothing but the type and on how many rows the expert has.
#pragma once

#include "compute-threads.h"

#include "ggml-backend.h"

#include <cstdint>
#include <vector>

// Rows multiplied at one time. More would take scratch memory and win nothing; an expert with more has them in equal parts,
// none of them so small that llama.cpp would take another kernel for it (from 8 rows on).
enum { MULTIPLY_ROWS = 128 };

struct expert_multiply {
    ggml_backend_t backend = nullptr;
    std::vector<float> in, out;           // MULTIPLY_ROWS rows each
    std::vector<int32_t> no_ids;          // MULTIPLY_ROWS zeros
    std::vector<int32_t> ids;             // of some slots of a token
    std::vector<char> arena;              // for the descriptors of a graph of one node
    std::vector<int32_t> pairs;           // of the node: token x K + slot, by expert
    std::vector<int32_t> first;           // per expert, and one more: where its pairs begin
    ggml_tensor * replaced = nullptr;     // node that computes nothing, as its product is there; null: none
    expert_multiply() = default;
    expert_multiply(const expert_multiply &) = delete;
    ~expert_multiply();
};

// `most_in` and `most_out`: the longest row of any expert matrix and of any product. `most_pairs`: tokens x K. INTERNAL.
engine_status expert_multiply_init(expert_multiply & m, const compute_threads & threads, int threads_count, int experts, int64_t most_in, int64_t most_out,
                                   int64_t most_pairs);
// Sorts the rows of a node by the expert that they chose. INTERNAL where it is not shaped as expected.
engine_status expert_multiply_begin(expert_multiply & m, const ggml_tensor * node);
// All rows of the node that chose `expert`, whose matrix has to be in place. INTERNAL.
engine_status expert_multiply_run(expert_multiply & m, const ggml_tensor * node, int expert);
// The `slots[0..n)` of a node of one token, in one multiplication; the matrices of their experts have to be in place.
// INTERNAL where it is not shaped as expected.
engine_status expert_multiply_slots(expert_multiply & m, const ggml_tensor * node, const int32_t * slots, int n);

// The graph's own `node` computes nothing, until it is restored when the graph has gone past it.
void expert_multiply_replace(expert_multiply & m, ggml_tensor * node);
void expert_multiply_restore(expert_multiply & m);

inline uint64_t expert_multiply_bytes(const expert_multiply & m) { return (m.in.size() + m.out.size()) * sizeof(float); }
