// One pass through the model: fills the batch, runs llama_decode under the hook, and turns its answer into a status.
#include "engine-state.h"

#include "llama-runtime.h"

#include <algorithm>

void pass_batch_init(pass_batch & b, int32_t most) { b.batch = llama_batch_init(most, 0, 1); }
void pass_batch_free(pass_batch & b) { llama_batch_free(b.batch); }

static void fill(llama_batch & batch, const int32_t * tokens, int32_t n, int32_t position, pass_outputs outputs) {
    batch.n_tokens = n;
    for (int32_t i = 0; i < n; i++) {
        batch.token[i] = tokens[i];
        batch.pos[i] = position + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = outputs == OUTPUTS_ALL || (outputs == OUTPUTS_LAST && i == n - 1);
    }
}

// A pass of one token that read nothing cannot have read another file, so that it is enough to look at the model's every so
// often: that costs as much as routing all layers of a small model.
static const int64_t WATCH_NS = 50 * 1000 * 1000;

static engine_status check_model(engine & e, int32_t tokens, int64_t start_ns) {
    const bool may_have_read = tokens > 1 || e.hook.outcome.misses > 0 || e.hook.prefetch.active || failed(e.hook.error);
    if (!may_have_read && start_ns - e.watched_ns < WATCH_NS) return {};
    e.watched_ns = start_ns;
    return model_watch_check(e.watch);
}

engine_status engine_run_pass(engine & e, llama_context * context, pass_batch & b, const int32_t * tokens, int32_t n,
                              int32_t position, pass_outputs outputs, pass_kind pass) {
    fill(b.batch, tokens, n, position, outputs);
    layer_hook_begin(e.hook, pass);
    const int64_t start = now_ns();
    if (context == e.context && pass != PASS_LOOK) e.widest_pass.store(std::max(e.widest_pass.load(), n));
    const int32_t answer = llama_decode(context, b.batch);
    layer_hook_end(e.hook);
    const engine_status changed = check_model(e, n, start);
    e.totals.flash_bytes.add(e.hook.outcome.flash_bytes);
    if (e.hook.layers != &e.layers) e.totals.evaluation_bytes.add(e.hook.outcome.flash_bytes);
    e.totals.flash_reads.add(e.hook.outcome.flash_reads);
    e.totals.stall_ns.add(e.hook.outcome.stall_ns);
    if (answer == 0 && !failed(e.hook.error) && !failed(changed)) {
        if (pass == PASS_ROUTED && n == 1 && e.hook.prefetch.mode == PREFETCH_AUTO) prefetch_trial_add(e.hook.prefetch.trial, now_ns() - start, e.hook.outcome.flash_bytes);
        return {};
    }

    llama_memory_seq_rm(llama_get_memory(context), 0, position, -1);
    // Checked after the reads, so that none of them came from another file; and it explains a read that failed.
    if (failed(changed)) return changed;
    if (failed(e.hook.error)) return e.hook.error;
    if (answer == 2 && pass == PASS_LOOK) return {};
    if (answer == 2) return status_error(ENGINE_CANCELLED, "cancelled");
    if (answer == 1) {
        return status_error(ENGINE_CONTEXT_FULL, "no room for %d tokens at position %d of the context", n, position);
    }
    return status_error(ENGINE_INTERNAL, "llama_decode answered %d: %s", answer, llama_runtime_errors().c_str());
}
