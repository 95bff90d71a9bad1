// The hook that llama.cpp calls between graph nodes. At each MoE layer it takes the router's scores, rewrites the
// selected ids, and makes the selected experts present in time for the graph to multiply by them: at a stop of the graph, or
// within it where no miss is likely (graph-moment.h). Gate weights are
// gathered after it, from the unbiased scores, so the model's own arithmetic is untouched. K is fixed in the graph: where
// a token drops experts, their slots hold the id of its best one, so that nothing is read for them, and their weights are
// taken out when the graph has gathered them. (llama.cpp's `mul_mat_id` takes an id twice in a row; its repacking
// variant does not, and is off.)
//
// A pass is one llama_decode. A hook never returns false, which would silently end the graph: on an error it sets
// `error`, and the abort callback (`layer_hook_abort`) makes the decode return 2. Nothing here allocates, locks or
// logs; scratch space is sized by `layer_hook_init` and `layer_hook_reserve`.
#pragma once

#include "cache-resize.h"
#include "event-ring.h"
#include "expert-multiply.h"
#include "expert-verify.h"
#include "graph-moment.h"
#include "layer-state.h"
#include "prefetch.h"

enum pass_kind {
    PASS_LOOK,     // find the router's tensors in the graph; computes nothing
    PASS_PREFILL,  // unbiased; experts counted once per layer
    PASS_ROUTED,   // every row is a token to route: decode, or a whole batch of an evaluation
};

// Where one layer's scores come from, found by the look pass.
struct router_place {
    char topk[GGML_MAX_NAME] = "";
    char scores[GGML_MAX_NAME] = ""; // tensor to copy the scores from when it has been computed
    char weights[GGML_MAX_NAME] = ""; // gate weights gathered by the ids; empty where the graph does it in another way
    bool scores_at_topk = false;   // or: read the tensor that was sorted, when the ids are there
    bool scores_move = false;      // `scores` is what the gate reads, so that one row of it may be computed elsewhere
    engine_select_by select_by = SELECT_BY_LOGITS;
};

// What one pass did, over all layers.
struct pass_outcome {
    int64_t hits = 0, misses = 0, dropped = 0, swaps = 0, stall_ns = 0, flash_bytes = 0, flash_reads = 0;
};

// Memory that a row of scores is computed into, so that nothing is placed over it before the ids are there.
struct score_room {
    std::vector<float> room;
    float * row = nullptr;               // in it, where llama.cpp's alignment puts it
    std::vector<const ggml_tensor *> tensors;  // per MoE layer, of the pass; null: taken when they are computed
};

// Reads of one layer's misses that the graph has not waited for yet.
struct fetch_progress {
    int layer = -1;                      // -1: none
    int count = 0;                       // misses
    size_t turn = 0;                     // matrices waited for
    std::vector<uint8_t> reading;        // per miss: it was not in memory
};

// A layer whose experts pass through memory, see miss-stream.h. An item is one matrix of one expert: those of the first turn in
// the order of the experts, then those of the second, and so on.
struct miss_stream {
    int layer = -1;                      // -1: none
    int count = 0, misses = 0;           // experts, missed ones
    std::vector<int32_t> order;          // the experts
    std::vector<int32_t> missed;         // of each, in that order: its index in `hook.missed`, -1 for none
    std::vector<uint8_t> reads, stays;   // likewise: it is read; its memory is kept when the layer is done
    int64_t next_read = 0, next_use = 0; // items
    int64_t room = 0;                    // bytes that may still be brought in
};

struct layer_hook {
    const model_info * info = nullptr;
    expert_memory * memory = nullptr;
    flash_reader * reader = nullptr;
    engine_totals * totals = nullptr;
    bool keep_all = false;
    const model_checksums * checksums = nullptr;  // what experts are verified against; null: they are not
    expert_reads reads;
    prefetcher prefetch;
    expert_multiply multiply;            // of streamed layers, and of experts that are there before others

    // found by the look pass
    std::vector<router_place> routers;   // per MoE layer
    bool heard_letters[256] = {};        // of what follows "ffn_moe_" in the nodes that the hook acts at: tells most others apart
    std::vector<int32_t> moe_index;      // block index to MoE layer, -1 for a dense block
    bool normalises_weights = false, softmax_weights = false;
    int64_t longest_row = 0, longest_product = 0;  // of expert matrices

    // set for each pass
    pass_kind pass = PASS_LOOK;
    layer_states * layers = nullptr;     // what routing reads and changes
    layer_states * owner = nullptr;      // whose members keep their bytes when a layer is done
    cache_shrink * shrink = nullptr;     // requests that the owner shall follow; null: they wait
    event_ring * ring = nullptr;         // where misses are reported; null: nowhere
    int32_t * routes = nullptr;          // tokens of the pass x MoE layers x K chosen experts, -1: dropped; null: not recorded
    int32_t route_tokens = 0;            // how many those are; valid only with `routes`
    float * recorded = nullptr;          // tokens of the pass x MoE layers x experts scores, of passes without a prompt; null: not recorded
    cache_change_log * changes = nullptr; // where resizes and warm fills of the owner are recorded; null: nowhere
    float * capture = nullptr;           // MoE layers x experts scores of a one-row pass; null: not captured
    // who else looks at a layer's scores [rows x experts] when they have been computed; null: nobody
    void (*see_scores)(void * data, int layer, const ggml_tensor * scores, const float * z, int64_t rows) = nullptr;
    void * see_data = nullptr;
    std::vector<route_policy> policies;  // per MoE layer
    bool bias_prefill = false;
    bool passing = false;                // what several rows miss is streamed,
    int64_t passing_bytes = 0;           // with so much memory beyond their capacity
    double generation = 0;
    int32_t step = 0;

    // of the pass
    pass_outcome outcome;
    engine_status error;
    std::atomic<bool> cancelled{false};
    fetch_progress fetch;
    miss_stream stream;
    graph_moments moments;
    score_room own_scores;
    int surplus_layer = -1;              // layer whose experts beyond its owner's members are still present

    // scratch
    std::vector<float> scores;           // rows x experts, of scored_layer
    int scored_layer = -1;
    int64_t scored_rows = 0;
    std::vector<float> below;            // what `scores` held before, of below_layer
    int below_layer = -1;
    int64_t below_rows = 0;
    std::vector<int32_t> kept;           // per row: experts used, the others of the K being dropped
    std::vector<int32_t> ranking;        // for route_select
    std::vector<uint8_t> needed;         // per expert: selected by a row of this layer
    std::vector<uint8_t> before;         // per expert: nothing to read for this layer's pass
    std::vector<uint8_t> members;        // per expert: a member before the pass, of the virtual cache where there is one
    std::vector<int32_t> missed, evicted, victim;
    std::vector<miss_event> events;
};

void layer_hook_init(layer_hook & hook, const model_info & info, expert_memory & memory, flash_reader & reader,
                     engine_totals & totals, bool keep_all);
// Room for passes of up to `rows` tokens.
void layer_hook_reserve(layer_hook & hook, int rows);

// Which routing the next passes follow.
void layer_hook_follow(layer_hook & hook, const engine_spec & spec);

void layer_hook_begin(layer_hook & hook, pass_kind pass);
// Waits for reads under way and gives back what only the last layer needed.
void layer_hook_end(layer_hook & hook);
// Brings what `hook.shrink` asks for into force.
void layer_hook_shrink(layer_hook & hook);
// After the look pass: MODEL_FORMAT where a layer's router was not found or layers differ in kind.
engine_status layer_hook_check(const layer_hook & hook);

// For llama_context_params; `hook` is the user data of both.
bool layer_hook_eval(ggml_tensor * tensor, bool ask, void * hook);
bool layer_hook_abort(void * hook);
