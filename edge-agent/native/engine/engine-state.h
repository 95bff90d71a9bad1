// The inside of `struct engine`, shared by the files that implement engine.h.
//
// Threads: `mutex` guards the request slot, the spec and its pending successor. Everything from `model` to `layers`
// belongs to the thread that holds the request slot; when no request runs, to whoever holds `mutex`. Counters may be
// read at any time.
#pragma once

#include "compute-threads.h"
#include "layer-hook.h"
#include "model-watch.h"
#include "warm-fill.h"

#include "llama.h"

#include <condition_variable>
#include <mutex>

enum {
    MOST_BATCH = 512,  // tokens of one pass
    LEAST_BATCH = 32,  // no fewer for memory's sake: with half as many nearly twice as much is read of the experts that are missing
};

struct engine {
    model_watch watch;
    int64_t watched_ns = 0;              // when it was looked at last
    model_file file;
    model_checksums checksums;           // valid only if options.verify
    engine_open_options options;
    int32_t context_tokens = 0, batch_tokens = 0, threads = 1;  // batch_tokens: of a prompt at a time
    uint64_t prefill_bytes = 0;

    compute_threads compute;
    llama_model * model = nullptr;
    llama_context * context = nullptr;
    const llama_vocab * vocab = nullptr;
    expert_memory memory;
    flash_reader reader;
    layer_hook hook;
    event_ring ring;
    engine_totals totals;
    layer_states layers;                 // the real cache
    cache_shrink shrink;                 // memory asked back of it
    warm_fill warm;                      // experts read into its room while no request runs
    uint64_t dense_bytes = 0, kv_bytes = 0, compute_bytes = 0;
    std::atomic<int32_t> widest_pass{0}; // tokens of the largest pass that `context` has computed: its buffers are in memory as far as that

    std::mutex mutex;
    std::condition_variable changed;     // the request slot became free, or a spec came into force
    bool running = false, closed = false;
    bool spec_deferred = false;          // a stepped evaluation has the cache: specs come into force at its end
    std::string request_id;
    engine_spec spec;                    // in force
    engine_spec pending;                 // valid while pending_ticket > applied_ticket
    uint64_t pending_ticket = 0, applied_ticket = 0;
    std::atomic<bool> spec_pending{false};
};

// Gives the request slot back; a spec that waits comes into force.
void engine_end_request(engine & e);

// Brings a waiting spec into force; called by the thread that holds the request slot, between passes.
void engine_apply_pending(engine & e);
void engine_apply_pending_locked(engine & e);

// A stepped evaluation borrows the expert memory: the real cache is empty and specs wait from one to the other.
void engine_lend_cache(engine & e);
void engine_take_back_cache(engine & e);

// BAD_ARGUMENT, CAPACITY.
engine_status engine_check_spec(const model_info & info, const engine_spec & spec);
engine_status engine_check_tokens(const engine & e, const std::vector<int32_t> & tokens);

// Brings memory asked back into force, where the thread that holds the request slot is between two layers.
void engine_serve_shrink(engine & e);

// What a spec lets into memory, experts read ahead included: the bound of the expert memory's spares.
void engine_bound_held(engine & e, const engine_spec & spec);

// Empties the real cache and gives its memory back.
void engine_empty_cache(engine & e);

// Most tokens of a prefill micro-batch such that what a layer needs beyond the members of `cache` stays within
// prefill_bytes; null counts every expert it needs. 0 where not even one token fits, which a cache always prevents.
int32_t engine_batch_limit(const engine & e, const layer_states * cache, int32_t most);

// Experts of several tokens that do not fit pass through memory matrix by matrix, which a checksum of the whole expert does not
// allow: there the micro-batches are so small that they fit.
bool engine_passes_through(const engine & e);

// A context over the loaded model with the hook attached. IO (no memory).
engine_status engine_make_context(engine & e, int32_t tokens, int32_t batch, int32_t outputs, llama_context *& out);
// What its buffers take where all of them are used, the rows that are handed out included.
uint64_t engine_context_bytes(const engine & e, const llama_context * context, int32_t outputs);

// The context that generates has nothing to keep between two requests, so it can make room and be made anew. IO (no memory).
void engine_drop_context(engine & e);
engine_status engine_need_context(engine & e);

// One llama_decode of `n` tokens from position `position`; the hook's fields for the pass are set by the caller.
// Outputs for every token or for the last one only. On an error or a cancellation (`ENGINE_CANCELLED`) the positions
// of this pass are dropped from the KV cache.
struct pass_batch { llama_batch batch; };
void pass_batch_init(pass_batch & b, int32_t most);
void pass_batch_free(pass_batch & b);
enum pass_outputs { OUTPUTS_NONE, OUTPUTS_LAST, OUTPUTS_ALL };
engine_status engine_run_pass(engine & e, llama_context * context, pass_batch & b, const int32_t * tokens, int32_t n,
                              int32_t position, pass_outputs outputs, pass_kind pass);
