// Values that all of the engine's interface speaks of: a status, a routing spec, and what a model file is.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

enum engine_code {
    ENGINE_OK = 0,
    ENGINE_MODEL_FORMAT,   // the file is not a model this engine can run
    ENGINE_NOT_MOE,        // a valid model without experts
    ENGINE_MODEL_CHANGED,  // the file is not the one that was loaded any more; it has to be loaded again
    ENGINE_IO,             // the operating system refused or failed a read, write or mapping
    ENGINE_BAD_ARGUMENT,
    ENGINE_CAPACITY,       // the memory granted does not hold what one token needs
    ENGINE_CONTEXT_FULL,   // the prompt leaves no room for a token
    ENGINE_BUSY,           // another request runs
    ENGINE_CLOSED,
    ENGINE_CANCELLED,      // an evaluation was cancelled; a cancelled generation ends normally instead
    ENGINE_INTERNAL,
};

struct engine_status {
    engine_code code = ENGINE_OK;
    char message[512] = "";
};

// How a token's experts are chosen; defined in routing.h.
enum engine_routing {
    ROUTING_ORIGINAL = 0, ROUTING_CACHE_PRIOR, ROUTING_MAX_RANK, ROUTING_CUMULATIVE_THRESHOLD, ROUTING_PRUNED, ROUTING_SENSITIVITY,
};

// Who leaves a full cache; defined in expert-cache.h.
enum engine_eviction {
    EVICT_LRU = 0, EVICT_LFU, EVICT_LFRU, EVICT_ADAPTIVE,
    EVICT_BELADY,  // knows the future: for engine_replay alone
};

// Speculative pre-fetch, see prefetch.h. Auto: measured while it runs, and off where it does not pay.
enum engine_prefetch { PREFETCH_AUTO = 0, PREFETCH_OFF, PREFETCH_ON };

struct engine_spec {
    engine_routing routing = ROUTING_ORIGINAL;
    double lambda = 0;                // [0, 1]
    int32_t top_j = 0;                // [0, top_k]
    std::vector<int32_t> capacities;  // experts per MoE layer, each in [top_k, experts]
    double generation = 0;
    std::vector<double> lambdas;      // one per MoE layer, in place of `lambda`; empty: `lambda` for all
    std::vector<int32_t> top_js;      // likewise, in place of `top_j`
    int32_t max_rank = 0;             // ROUTING_MAX_RANK only: [top_k, experts]
    double mass_threshold = 0;        // ROUTING_CUMULATIVE_THRESHOLD only: [0, 1]
    int32_t rank = 0;                 // ROUTING_SENSITIVITY only: [1, top_k]
    uint64_t seed = 0;                // ROUTING_SENSITIVITY only
    int32_t first_biased_layer = 0;   // that many MoE layers, from the first, keep the model's own choice
    bool bias_prefill = false;        // prompts are routed as decoding is, instead of by the model's own choice
    engine_eviction eviction = EVICT_LRU;
    double eviction_half_life = 0;    // tokens in which a use loses half of its weight in LFU and LFRU; 0: never
    engine_prefetch prefetch = PREFETCH_OFF;  // what it reads ahead takes memory beyond the capacities
};

struct tensor_place {
    std::string name;
    int32_t file = 0;     // index into model_info.files
    uint64_t offset = 0;  // from the start of that file
    uint64_t bytes = 0;
    std::string type;     // ggml's name of it, e.g. "q8_0"
    std::vector<int64_t> shape;
};

enum engine_select_by { SELECT_BY_LOGITS = 0, SELECT_BY_LOGITS_BIASED, SELECT_BY_SELECTION_SCORE };

struct model_info {
    std::string path;
    std::vector<std::string> files;       // all of the model's; the first is `path`
    uint64_t file_bytes = 0;              // of all files
    std::string architecture;
    std::string name;
    int32_t layers = 0;
    std::vector<int32_t> moe_layers;      // block index of each MoE layer, ascending
    int32_t experts = 0;
    int32_t top_k = 0;
    std::vector<uint64_t> expert_bytes;   // per MoE layer, all matrices of one expert
    uint64_t dense_bytes = 0;
    uint64_t token_cycle_bytes = 0;       // sum over MoE layers of top_k x expert_bytes
    uint64_t alignment = 32;
    int64_t pack_version = 0;             // 0: the file has no checksums
    int64_t context_train = 0;
    int64_t vocab = 0;
    engine_select_by select_by = SELECT_BY_LOGITS;
    bool normalises_weights = false;
    std::vector<tensor_place> tensors;
};

// Returns whether to go on; false cancels. May come from the thread that works.
using progress_callback = std::function<bool(int64_t done, int64_t total)>;
