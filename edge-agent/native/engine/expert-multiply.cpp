#include "expert-multiply.h"

#include "ggml-cpu.h"

#include <algorithm>
#include <cstring>

expert_multiply::~expert_multiply() {
    if (backend) ggml_backend_free(backend);
}

engine_status expert_multiply_init(expert_multiply & m, const compute_threads & threads, int threads_count, int experts, int64_t most_in, int64_t most_out,
                                   int64_t most_pairs) {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ggml_backend_reg_t registered = cpu ? ggml_backend_dev_backend_reg(cpu) : nullptr;
    const auto address = [&](const char * name) { return registered ? ggml_backend_reg_get_proc_address(registered, name) : nullptr; };
    const auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(address("ggml_backend_set_n_threads"));
    const auto set_pool = reinterpret_cast<decltype(&ggml_backend_cpu_set_threadpool)>(address("ggml_backend_cpu_set_threadpool"));
    if (!set_threads || !set_pool) return status_error(ENGINE_INTERNAL, "llama.cpp's CPU backend has no thread pool");
    m.backend = ggml_backend_dev_init(cpu, nullptr);
    if (!m.backend) return status_error(ENGINE_INTERNAL, "llama.cpp's CPU backend could not be started");
    set_threads(m.backend, threads_count);
    set_pool(m.backend, threads.pool);
    m.in.resize(size_t(MULTIPLY_ROWS * most_in));
    m.out.resize(size_t(MULTIPLY_ROWS * most_out));
    m.no_ids.assign(MULTIPLY_ROWS, 0);
    m.ids.resize(MULTIPLY_ROWS);
    m.arena.resize(8 * ggml_tensor_overhead() + ggml_graph_overhead_custom(8, false));
    m.pairs.resize(size_t(most_pairs));
    m.first.resize(size_t(experts) + 1);
    return {};
}

static engine_status check_shape(const expert_multiply & m, const ggml_tensor * node) {
    const ggml_tensor & weights = *node->src[0], & in = *node->src[1], & ids = *node->src[2];
    if (in.type != GGML_TYPE_F32 || node->type != GGML_TYPE_F32 || in.nb[0] != sizeof(float) || ids.type != GGML_TYPE_I32 || ids.nb[0] != sizeof(int32_t) ||
        size_t(ids.ne[0] * ids.ne[1]) > m.pairs.size() || size_t(weights.ne[2]) + 1 != m.first.size() || size_t(in.ne[0]) * MULTIPLY_ROWS > m.in.size() ||
        size_t(node->ne[0]) * MULTIPLY_ROWS > m.out.size()) {
        return status_error(ENGINE_INTERNAL, "%s: unexpected shape", node->name);
    }
    return {};
}

static int32_t expert_of(const ggml_tensor * node, int64_t token, int64_t slot) {
    const ggml_tensor & ids = *node->src[2];
    return reinterpret_cast<const int32_t *>(static_cast<const char *>(ids.data) + size_t(token) * ids.nb[1])[slot];
}

engine_status expert_multiply_begin(expert_multiply & m, const ggml_tensor * node) {
    const engine_status status = check_shape(m, node);
    if (failed(status)) return status;
    const ggml_tensor & ids = *node->src[2];
    std::fill(m.first.begin(), m.first.end(), 0);
    for (int64_t t = 0; t < ids.ne[1]; t++) {
        for (int64_t i = 0; i < ids.ne[0]; i++) m.first[size_t(expert_of(node, t, i)) + 1]++;
    }
    for (size_t e = 1; e < m.first.size(); e++) m.first[e] += m.first[e - 1];
    for (int64_t t = 0; t < ids.ne[1]; t++) {
        for (int64_t i = 0; i < ids.ne[0]; i++) m.pairs[size_t(m.first[size_t(expert_of(node, t, i))]++)] = int32_t(t * ids.ne[0] + i);
    }
    // Each begins now where the next does.
    std::copy_backward(m.first.begin(), m.first.end() - 1, m.first.end());
    m.first[0] = 0;
    return {};
}

// A tensor of somebody else's memory.
static ggml_tensor * tensor_at(ggml_context * context, ggml_type type, int64_t a, int64_t b, int64_t c, void * data) {
    ggml_tensor * tensor = ggml_new_tensor_3d(context, type, a, b, c);
    tensor->data = data;
    return tensor;
}

static void copy_in(expert_multiply & m, const ggml_tensor * node, int64_t row, int64_t token, int64_t slot) {
    const ggml_tensor & in = *node->src[1];
    memcpy(m.in.data() + row * in.ne[0], static_cast<const char *>(in.data) + size_t(slot % in.ne[1]) * in.nb[1] + size_t(token) * in.nb[2],
           size_t(in.ne[0]) * sizeof(float));
}

static void copy_out(const expert_multiply & m, const ggml_tensor * node, int64_t row, int64_t token, int64_t slot) {
    memcpy(static_cast<char *>(node->data) + size_t(slot) * node->nb[1] + size_t(token) * node->nb[2], m.out.data() + row * node->ne[0],
           size_t(node->ne[0]) * sizeof(float));
}

// Multiplies `m.in`, seen as K rows for each of some tokens, by `experts` matrices that begin with `first`: row by row the
// one of its id.
static engine_status multiply(expert_multiply & m, const ggml_tensor * node, int first, int64_t experts, int32_t * row_ids, int64_t k, int64_t tokens) {
    const ggml_tensor & weights = *node->src[0];
    ggml_context * context = ggml_init({m.arena.size(), m.arena.data(), true});
    if (!context) return status_error(ENGINE_INTERNAL, "%s: no room for its graph", node->name);
    ggml_tensor * matrices = tensor_at(context, weights.type, weights.ne[0], weights.ne[1], experts, static_cast<char *>(weights.data) + size_t(first) * weights.nb[2]);
    ggml_tensor * in = tensor_at(context, GGML_TYPE_F32, weights.ne[0], k, tokens, m.in.data());
    ggml_tensor * ids = tensor_at(context, GGML_TYPE_I32, k, tokens, 1, row_ids);
    ggml_tensor * product = ggml_mul_mat_id(context, matrices, in, ids);
    product->data = m.out.data();
    ggml_cgraph * graph = ggml_new_graph_custom(context, 8, false);
    ggml_build_forward_expand(graph, product);
    const ggml_status status = ggml_backend_graph_compute(m.backend, graph);
    ggml_free(context);
    return status == GGML_STATUS_SUCCESS ? engine_status() : status_error(ENGINE_INTERNAL, "%s: llama.cpp could not multiply", node->name);
}

engine_status expert_multiply_run(expert_multiply & m, const ggml_tensor * node, int expert) {
    const int64_t slots = node->src[2]->ne[0];
    const int32_t begin = m.first[size_t(expert)], end = m.first[size_t(expert) + 1];
    const int32_t parts = (end - begin + MULTIPLY_ROWS - 1) / MULTIPLY_ROWS;
    for (int32_t part = 0; part < parts; part++) {
        const int32_t from = begin + int32_t(int64_t(end - begin) * part / parts), until = begin + int32_t(int64_t(end - begin) * (part + 1) / parts);
        for (int32_t p = from; p < until; p++) copy_in(m, node, p - from, m.pairs[size_t(p)] / slots, m.pairs[size_t(p)] % slots);
        const engine_status status = multiply(m, node, expert, 1, m.no_ids.data(), 1, until - from);
        if (failed(status)) return status;
        for (int32_t p = from; p < until; p++) copy_out(m, node, p - from, m.pairs[size_t(p)] / slots, m.pairs[size_t(p)] % slots);
    }
    return {};
}

engine_status expert_multiply_slots(expert_multiply & m, const ggml_tensor * node, const int32_t * slots, int n) {
    engine_status status = check_shape(m, node);
    if (!failed(status) && n > MULTIPLY_ROWS) status = status_error(ENGINE_INTERNAL, "%s: unexpected shape", node->name);
    if (failed(status)) return status;
    for (int i = 0; i < n; i++) {
        m.ids[size_t(i)] = expert_of(node, 0, slots[i]);
        copy_in(m, node, i, 0, slots[i]);
    }
    status = multiply(m, node, 0, node->src[0]->ne[2], m.ids.data(), n, 1);
    for (int i = 0; i < n && !failed(status); i++) copy_out(m, node, i, 0, slots[i]);
    return status;
}

void expert_multiply_replace(expert_multiply & m, ggml_tensor * node) {
    node->op = GGML_OP_NONE;
    m.replaced = node;
}

void expert_multiply_restore(expert_multiply & m) {
    if (m.replaced) m.replaced->op = GGML_OP_MUL_MAT_ID;
    m.replaced = nullptr;
}
