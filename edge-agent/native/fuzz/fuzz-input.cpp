#include "fuzz-input.h"

#include "model-pack.h"

#include "ggml.h"
#include "gguf.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

static void require(bool holds, const char * what) {
    if (holds) return;
    fprintf(stderr, "does not hold: %s\n", what);
    abort();
}

std::string fuzz_file(const uint8_t * data, size_t size) {
    static const int fd = memfd_create("fuzz", 0);
    require(ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == ssize_t(size), "the input is written");
    return "/proc/self/fd/" + std::to_string(fd);
}

fuzz_bytes fuzz_read(const std::string & path) {
    FILE * f = fopen(path.c_str(), "rb");
    require(f != nullptr, "the file is there");
    fuzz_bytes out;
    uint8_t part[65536];
    for (size_t n; (n = fread(part, 1, sizeof(part), f)) > 0;) out.insert(out.end(), part, part + n);
    fclose(f);
    return out;
}

void fuzz_write(const std::string & path, const uint8_t * data, size_t size) {
    FILE * f = fopen(path.c_str(), "wb");
    require(f && (size == 0 || fwrite(data, 1, size, f) == size) && fclose(f) == 0, "the file is written");
}

static void add_tensor(gguf_context * g, ggml_context * context, const std::string & name, ggml_type type, std::vector<int64_t> ne) {
    ggml_tensor * t = ggml_new_tensor(context, type, int(ne.size()), ne.data());
    ggml_set_name(t, name.c_str());
    for (size_t i = 0; i < ggml_nbytes(t); i++) static_cast<uint8_t *>(t->data)[i] = uint8_t(i * 31 + name.size());
    gguf_add_tensor(g, t);
}

fuzz_bytes fuzz_model(bool merged) {
    gguf_context * g = gguf_init_empty();
    ggml_context * context = ggml_init(ggml_init_params{1 << 20, nullptr, false});
    gguf_set_val_str(g, "general.architecture", "tiny");
    gguf_set_val_str(g, "general.name", "a tiny model");
    gguf_set_val_u32(g, "tiny.block_count", 3);
    gguf_set_val_u32(g, "tiny.context_length", 64);
    gguf_set_val_u32(g, "tiny.expert_count", 4);
    gguf_set_val_u32(g, "tiny.expert_feed_forward_length", 32);
    const int32_t used[] = {0, 2, 2};
    if (merged) gguf_set_arr_data(g, "tiny.expert_used_count", GGUF_TYPE_INT32, used, 3);
    else gguf_set_val_u32(g, "tiny.expert_used_count", 2);
    gguf_set_val_f32(g, "tiny.rope.freq_base", 10000);
    gguf_set_val_bool(g, "tokenizer.ggml.add_bos_token", true);
    gguf_set_val_u64(g, "tiny.large", uint64_t(1) << 60);
    const char * tokens[] = {"a", "b", "c"};
    const float scores[] = {0.5f, 1, 2};
    gguf_set_arr_str(g, "tokenizer.ggml.tokens", tokens, 3);
    gguf_set_arr_data(g, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores, 3);
    add_tensor(g, context, "token_embd.weight", GGML_TYPE_F16, {32, 3});
    add_tensor(g, context, "blk.0.ffn_up.weight", GGML_TYPE_Q8_0, {32, 8});
    for (int block = 1; block < 3; block++) {
        const std::string prefix = "blk." + std::to_string(block) + ".ffn_";
        add_tensor(g, context, prefix + "gate_inp.weight", GGML_TYPE_F32, {32, 4});
        add_tensor(g, context, prefix + "down_exps.weight", GGML_TYPE_Q8_0, {32, 32, 4});
        if (merged) {
            add_tensor(g, context, prefix + "gate_up_exps.weight", GGML_TYPE_Q4_0, {32, 64, 4});
        } else {
            add_tensor(g, context, prefix + "gate_exps.weight", GGML_TYPE_Q4_0, {32, 32, 4});
            add_tensor(g, context, prefix + "up_exps.weight", GGML_TYPE_F16, {32, 32, 4});
        }
    }
    const std::string path = "/tmp/moefleet-fuzz-" + std::to_string(getpid()) + ".gguf";
    require(gguf_write_to_file(g, path.c_str(), false), "the seed is written");
    const fuzz_bytes out = fuzz_read(path);
    unlink(path.c_str());
    ggml_free(context);
    gguf_free(g);
    return out;
}

fuzz_bytes fuzz_packed_model(bool merged) {
    const std::string target = "/tmp/moefleet-fuzz-" + std::to_string(getpid()) + ".packed";
    const fuzz_bytes model = fuzz_model(merged);
    write_result result;
    const engine_status status = model_pack(fuzz_file(model.data(), model.size()), target, true, nullptr, result);
    require(!failed(status), status.message);
    const fuzz_bytes out = fuzz_read(target);
    unlink(target.c_str());
    return out;
}

void fuzz_check_model(const model_file & file, size_t size) {
    const model_info & info = file.info;
    for (const auto & t : info.tensors) {
        require(t.bytes > 0 && t.bytes <= size && t.offset <= size - t.bytes, "tensors lie inside the file");
    }
    require(info.experts > 0 && info.top_k > 0 && info.top_k <= info.experts, "a token takes some of the experts");
    require(!file.layers.empty() && file.layers.size() == info.moe_layers.size() && file.layers.size() == info.expert_bytes.size(),
            "one entry per MoE layer");
    for (const auto & layer : file.layers) {
        require(layer.block >= 0 && layer.block < info.layers, "MoE layers are blocks");
        require(layer.matrices.size() >= 2 && layer.matrices.size() <= EXPERT_MATRICES, "two to four matrices");
        uint64_t bytes = 0;
        for (const auto & m : layer.matrices) {
            require(m.expert_bytes > 0 && m.expert_bytes <= size / uint64_t(info.experts), "experts are no larger than the file");
            require(m.offset <= size - m.expert_bytes * uint64_t(info.experts), "the last expert ends inside the file");
            bytes += m.expert_bytes;
        }
        require(bytes == layer.expert_bytes, "an expert is the sum of its matrices");
    }
}
