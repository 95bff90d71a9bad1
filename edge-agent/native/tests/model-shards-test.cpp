// Models in several files: described, loaded, run and packed as the same model in one file, whichever file a tensor is in.
#include "model-load.h"
#include "model-pack.h"
#include "stock-run.h"
#include "tiny-model.h"

#include <filesystem>
#include <fstream>
#include <map>

namespace fs = std::filesystem;

static std::string shard(const std::string & stem, int number, int count) {
    char name[64];
    snprintf(name, sizeof(name), "-%05d-of-%05d.gguf", number, count);
    return stem + name;
}

// Deals the tensors of a model out over `count` files, in turn, so that the matrices of one layer lie in different ones;
// the first holds the metadata, and no tensor where `bare`.
static std::string split(const std::string & path, const std::string & stem, int count, bool bare) {
    ggml_context * raw = nullptr;
    const gguf_ptr whole(gguf_init_from_file(path.c_str(), gguf_init_params{false, &raw}));
    const ggml_ptr tensors(raw);
    for (int s = 0; s < count; s++) {
        const gguf_ptr g(gguf_init_empty());
        if (s == 0) gguf_set_kv(g.get(), whole.get());
        gguf_set_val_u16(g.get(), "split.no", uint16_t(s));
        gguf_set_val_u16(g.get(), "split.count", uint16_t(count));
        gguf_set_val_i32(g.get(), "split.tensors.count", int32_t(gguf_get_n_tensors(whole.get())));
        for (int64_t i = 0; i < gguf_get_n_tensors(whole.get()); i++) {
            const int owner = bare ? 1 + int(i % (count - 1)) : int(i % count);
            if (owner == s) gguf_add_tensor(g.get(), ggml_get_tensor(tensors.get(), gguf_get_tensor_name(whole.get(), i)));
        }
        if (!gguf_write_to_file(g.get(), shard(stem, s + 1, count).c_str(), false)) exit(1);
    }
    return shard(stem, 1, count);
}

static void is_the_same_model(const std::string & path, const std::string & first, int count) {
    model_info one, many;
    REQUIRE_OK(engine_inspect(path, one));
    REQUIRE_OK(engine_inspect(first, many));
    CHECK_EQUAL(many.files.size(), size_t(count));
    CHECK_EQUAL(one.files.size(), 1u);
    CHECK_EQUAL(many.dense_bytes, one.dense_bytes);
    CHECK(many.expert_bytes == one.expert_bytes && many.moe_layers == one.moe_layers);
    uint64_t bytes = 0;
    for (const auto & file : many.files) bytes += fs::file_size(file);
    CHECK_EQUAL(many.file_bytes, bytes);
    std::map<std::string, std::string> whole;
    const auto bytes_of = [](const model_info & info, const tensor_place & t) {
        std::ifstream in(info.files[size_t(t.file)], std::ios::binary);
        std::string out(size_t(t.bytes), 0);
        in.seekg(std::streamoff(t.offset)).read(out.data(), std::streamsize(out.size()));
        return out;
    };
    for (const auto & t : one.tensors) whole[t.name] = bytes_of(one, t);
    CHECK_EQUAL(many.tensors.size(), whole.size());
    for (const auto & t : many.tensors) CHECK(bytes_of(many, t) == whole[t.name]);
}

// Both ways to load fill dense tensors alike and leave the experts alone.
static void loads_either_way(const std::string & first) {
    model_file file;
    REQUIRE_OK(model_file_read(first, file));
    floats logits[2];
    for (const bool streamed : {false, true}) {
        expert_memory memory;
        expert_memory_init(memory, file);
        llama_model * model = nullptr;
        REQUIRE_OK((streamed ? model_load_by_stream : model_load)(file, memory, nullptr, nullptr, model));
        model_files files;
        REQUIRE_OK(model_files_open(files, file.info.files));
        for (auto & layer : memory.layers) {
            for (int i = 0; i < layer.n_places; i++) {
                const expert_place & p = layer.places[i];
                for (uint64_t b = 0; b < p.bytes * uint64_t(memory.experts); b += 97) CHECK_EQUAL(p.base[b], 0);
                CHECK_EQUAL(model_files_read(files, p.base, size_t(p.bytes) * size_t(memory.experts), p.file_offset), 0);
            }
        }
        llama_context_params cp = llama_context_default_params();
        cp.n_ctx = 64;
        cp.n_threads = cp.n_threads_batch = 1;
        llama_context * context = llama_init_from_model(model, cp);
        std::vector<int32_t> tokens = PROMPT;
        CHECK_EQUAL(llama_decode(context, llama_batch_get_one(tokens.data(), int32_t(tokens.size()))), 0);
        logits[streamed] = logits_of(context, model);
        llama_free(context);
        llama_model_free(model);
    }
    CHECK(same_bytes(logits[0], logits[1]));
}

// Run where it lies, with misses at every layer: what the stock library computes from the model in one file, byte for byte.
static void runs_as_it_lies(const std::string & path, const std::string & first) {
    engine * e = open_at_least(first);
    equals_stock_llama_at_lambda_zero(path, e);
    engine_free(e);
}

// Each file is watched, not only the one that was named.
static void notices_a_change_of_any_file(const std::string & first, const std::string & third) {
    engine * e = open_at_least(first);
    REQUIRE_OK(model_watch_check(e->watch));
    fs::resize_file(third, fs::file_size(third) - 1);
    const engine_status status = model_watch_check(e->watch);
    CHECK_EQUAL(status.code, ENGINE_MODEL_CHANGED);
    CHECK(strstr(status.message, third.c_str()) != nullptr);
    engine_free(e);
}

// Checksums are of one file, which the error says how to get.
static void cannot_be_verified(const std::string & first) {
    model_info info;
    REQUIRE_OK(engine_inspect(first, info));
    engine_spec spec;
    spec.capacities.assign(info.moe_layers.size(), info.top_k);
    engine_open_options options = options_of(first, spec);
    options.verify = true;
    engine * e = nullptr;
    const engine_status status = engine_open(options, nullptr, nullptr, e);
    CHECK_EQUAL(status.code, ENGINE_BAD_ARGUMENT);
    CHECK(strstr(status.message, "moefleet model pack") != nullptr);
}

static void packs_into_one_file(const std::string & path, const std::string & first, const temporary_folder & folder) {
    const std::string one = folder.file("one.gguf"), from_many = folder.file("from-many.gguf");
    write_result result;
    REQUIRE_OK(model_pack(path, one, false, nullptr, result));
    REQUIRE_OK(model_pack(first, from_many, false, nullptr, result));
    model_info a, b;
    REQUIRE_OK(engine_inspect(one, a));
    REQUIRE_OK(engine_inspect(from_many, b));
    CHECK_EQUAL(b.files.size(), 1u);
    CHECK_EQUAL(a.tensors.size(), b.tensors.size());
    check_result check;
    REQUIRE_OK(model_check(from_many, nullptr, check));
    CHECK_EQUAL(check.damaged_count, 0);
    engine * e = open_at_least(from_many);
    equals_stock_llama_at_lambda_zero(from_many, e);
    engine_free(e);
}

static void refuses(const std::string & path, engine_code code, const std::string & because) {
    model_info info;
    const engine_status status = engine_inspect(path, info);
    CHECK_EQUAL(status.code, code);
    const bool says = strstr(status.message, because.c_str()) != nullptr;
    CHECK(says);
    if (!says) fprintf(stderr, "  '%s' does not say '%s'\n", status.message, because.c_str());
}

static void names_the_file_that_is_wrong(const std::string & path, const temporary_folder & folder) {
    const std::string stem = folder.file("m"), first = split(path, stem, 3, false), second = shard(stem, 2, 3), third = shard(stem, 3, 3);
    refuses(second, ENGINE_MODEL_FORMAT, "is file 2 of a model's 3; give the first, " + first);
    fs::copy_file(first, folder.file("renamed.gguf"));
    refuses(folder.file("renamed.gguf"), ENGINE_MODEL_FORMAT, "its name must end in -00001-of-00003.gguf");

    fs::rename(second, folder.file("away"));
    refuses(first, ENGINE_IO, "file 2 of the model's 3 cannot be read: " + second);
    fs::copy_file(third, second);
    refuses(first, ENGINE_MODEL_FORMAT, second + ": expected file 2 of 3, found 3 of 3");
    fs::remove(second);
    std::ofstream(second) << "no model";
    refuses(first, ENGINE_MODEL_FORMAT, second);
    fs::remove(second);
    fs::copy_file(folder.file("away"), second);
    fs::resize_file(second, fs::file_size(second) - 4096);
    refuses(first, ENGINE_MODEL_FORMAT, second);
    fs::remove(second);
    fs::rename(folder.file("away"), second);
    model_info info;
    REQUIRE_OK(engine_inspect(first, info));

    // A file of another model, and one with too many tensors.
    const std::string other = folder.file("other");
    split(path, other, 3, true);
    fs::copy_file(shard(other, 2, 3), second, fs::copy_options::overwrite_existing);
    refuses(first, ENGINE_MODEL_FORMAT, "is in two of the model's files");
    fs::copy_file(shard(other, 1, 3), second, fs::copy_options::overwrite_existing);
    refuses(first, ENGINE_MODEL_FORMAT, second + ": expected file 2 of 3, found 1 of 3");
    split(path, stem, 3, false);
}

int main() {
    temporary_folder folder;
    for (const char * name : {"qwen2moe", "deepseek2-sigmoid-groups", "glm4moe"}) {
        const std::string path = folder.file((std::string(name) + ".gguf").c_str());
        tiny_model_write(tiny_model_named(name), path);
        for (const bool bare : {false, true}) {
            const std::string first = split(path, folder.file(bare ? "bare" : "dealt"), 3, bare);
            is_the_same_model(path, first, 3);
            loads_either_way(first);
            runs_as_it_lies(path, first);
            cannot_be_verified(first);
        }
    }
    const std::string path = folder.file("qwen2moe.gguf");
    packs_into_one_file(path, split(path, folder.file("packed"), 3, false), folder);
    names_the_file_that_is_wrong(path, folder);
    notices_a_change_of_any_file(split(path, folder.file("changing"), 3, false), shard(folder.file("changing"), 3, 3));
    return checks_done();
}
