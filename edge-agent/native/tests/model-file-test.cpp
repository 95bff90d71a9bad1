#include "model-file.h"

#include "check.h"

#include "ggml.h"
#include "gguf.h"

#include <algorithm>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <iterator>
#include <sys/stat.h>

static const char * MODEL = FIXTURES "/tinymoe-17m-q8_0.gguf";

static void describes_the_reference_model() {
    model_file file;
    REQUIRE_OK(model_file_read(MODEL, file));
    const model_info & info = file.info;
    CHECK(info.architecture == "qwen2moe");
    CHECK_EQUAL(info.layers, 6);
    CHECK_EQUAL(info.moe_layers.size(), 6u);
    CHECK_EQUAL(info.experts, 32);
    CHECK_EQUAL(info.top_k, 4);
    CHECK_EQUAL(info.expert_bytes[5], 3u * 192 * 128 / 32 * 34);
    CHECK_EQUAL(info.token_cycle_bytes, 6u * 4 * info.expert_bytes[0]);
    CHECK_EQUAL(info.vocab, 4096);
    CHECK_EQUAL(info.tensors.size(), 105u);
    uint64_t experts = 0;
    for (const uint64_t bytes : info.expert_bytes) experts += bytes * 32;
    uint64_t all = 0;
    for (const auto & t : info.tensors) all += t.bytes;
    CHECK_EQUAL(info.dense_bytes + experts, all);
}

static void write_bytes(const std::string & path, const std::vector<char> & bytes, size_t n) {
    std::ofstream(path, std::ios::binary | std::ios::trunc).write(bytes.data(), std::streamsize(n));
}

static engine_code code_of(const std::string & path) {
    model_file file;
    return model_file_read(path, file).code;
}

static void refuses_every_truncation(const temporary_folder & folder, const std::vector<char> & model) {
    const std::string path = folder.file("short.gguf");
    write_bytes(path, model, model.size());
    // Coarse steps through the data, finer ones through the header, every byte at the front.
    std::vector<size_t> lengths;
    for (size_t n = model.size() - 1; n > 100000; n -= std::min<size_t>(n - 1, 1500000)) lengths.push_back(n);
    for (size_t n = 97612; n > 600; n -= 397) lengths.push_back(n);
    for (size_t n = 600; n + 1 > 0; n--) lengths.push_back(n);
    for (const size_t n : lengths) {
        if (truncate(path.c_str(), off_t(n)) != 0) exit(1);
        CHECK_EQUAL(code_of(path), ENGINE_MODEL_FORMAT);
    }
}

// Any answer will do, save a crash, an allocation of what a count says, or an endless loop.
static void survives_flipped_bytes(const temporary_folder & folder, const std::vector<char> & model) {
    const std::string path = folder.file("flipped.gguf");
    write_bytes(path, model, model.size());
    const int fd = open(path.c_str(), O_RDWR);
    uint64_t state = 99;
    int refused = 0;
    for (int i = 0; i < 1500; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        // Half of the flips hit the counts and scalars at the front, half the descriptions of tensors at the end.
        const off_t at = i % 2 ? off_t((state >> 33) % 1100) : off_t(90000 + (state >> 33) % 7600);
        const char before = model[size_t(at)];
        const char after = i % 3 ? char(before ^ (1 << (state % 8))) : char(0xff);
        if (pwrite(fd, &after, 1, at) != 1) exit(1);
        if (code_of(path) != ENGINE_OK) refused++;
        if (pwrite(fd, &before, 1, at) != 1) exit(1);
    }
    close(fd);
    CHECK(refused > 300);
    CHECK_EQUAL(code_of(path), ENGINE_OK);
}

static size_t find(const std::vector<char> & model, const std::string & text) {
    const auto at = std::search(model.begin(), model.end(), text.begin(), text.end());
    if (at == model.end()) exit(1);
    return size_t(at - model.begin());
}

// Writes a copy in which the 8 bytes at `at` are `value`.
static std::string patched(const temporary_folder & folder, std::vector<char> model, size_t at, uint64_t value, size_t bytes = 8) {
    memcpy(model.data() + at, &value, bytes);
    const std::string path = folder.file("patched.gguf");
    write_bytes(path, model, model.size());
    return path;
}

static void names_sizes_that_lie(const temporary_folder & folder, const std::vector<char> & model) {
    const std::string name = "blk.3.ffn_up_exps.weight";
    const size_t dims = find(model, name) + name.size();
    model_file file;
    engine_status status = model_file_read(patched(folder, model, dims + 4 + 16, 60), file);
    CHECK_EQUAL(status.code, ENGINE_MODEL_FORMAT);
    CHECK(strcmp(status.message, "blk.3.ffn_up_exps.weight: expected 32 experts, found 60") == 0 || strstr(status.message, "overlaps"));
    status = model_file_read(patched(folder, model, dims + 4 + 16, 20), file);
    CHECK(strcmp(status.message, "blk.3.ffn_up_exps.weight: expected 32 experts, found 20") == 0);
    CHECK_EQUAL(model_file_read(patched(folder, model, dims + 4, 1ull << 62), file).code, ENGINE_MODEL_FORMAT);
    CHECK_EQUAL(model_file_read(patched(folder, model, dims + 4, uint64_t(-32)), file).code, ENGINE_MODEL_FORMAT);
    CHECK_EQUAL(model_file_read(patched(folder, model, dims + 4, 0), file).code, ENGINE_MODEL_FORMAT);
    CHECK_EQUAL(model_file_read(patched(folder, model, dims + 28, 999, 4), file).code, ENGINE_MODEL_FORMAT);       // type
    CHECK_EQUAL(model_file_read(patched(folder, model, dims + 32, 1ull << 50), file).code, ENGINE_MODEL_FORMAT);   // offset
    CHECK_EQUAL(model_file_read(patched(folder, model, dims + 32, 1), file).code, ENGINE_MODEL_FORMAT);
    CHECK_EQUAL(model_file_read(patched(folder, model, dims + 32, 0), file).code, ENGINE_MODEL_FORMAT);            // overlap
    CHECK_EQUAL(model_file_read(patched(folder, model, 8, 1ull << 60), file).code, ENGINE_MODEL_FORMAT);           // tensor count
    CHECK_EQUAL(model_file_read(patched(folder, model, 16, uint64_t(-1)), file).code, ENGINE_MODEL_FORMAT);        // pair count
    CHECK_EQUAL(model_file_read(patched(folder, model, 4, 9, 4), file).code, ENGINE_MODEL_FORMAT);                 // version
    const std::string used = "qwen2moe.expert_used_count";
    CHECK_EQUAL(model_file_read(patched(folder, model, find(model, used) + used.size() + 4, 33, 4), file).code, ENGINE_MODEL_FORMAT);
    const std::string count = "qwen2moe.expert_count";
    CHECK_EQUAL(model_file_read(patched(folder, model, find(model, count) + count.size() + 4, 0, 4), file).code, ENGINE_NOT_MOE);
}

static void tells_a_dense_model_from_no_model(const temporary_folder & folder) {
    CHECK_EQUAL(code_of(FIXTURES "/wikitext.txt"), ENGINE_MODEL_FORMAT);
    CHECK_EQUAL(code_of(folder.file("absent")), ENGINE_IO);
    CHECK_EQUAL(code_of(folder.path), ENGINE_IO);
    // A pipe without a writer would keep whoever opens it waiting for ever.
    const std::string pipe = folder.file("pipe");
    if (mkfifo(pipe.c_str(), 0600) != 0) exit(1);
    alarm(30);
    CHECK_EQUAL(code_of(pipe), ENGINE_IO);
    alarm(0);

    gguf_context * g = gguf_init_empty();
    gguf_set_val_str(g, "general.architecture", "llama");
    gguf_set_val_u32(g, "llama.block_count", 1);
    const char * tokens[] = {"a", "b"};
    gguf_set_arr_str(g, "tokenizer.ggml.tokens", tokens, 2);
    ggml_init_params params{1 << 20, nullptr, false};
    ggml_context * context = ggml_init(params);
    ggml_tensor * t = ggml_new_tensor_2d(context, GGML_TYPE_F32, 32, 2);
    ggml_set_name(t, "token_embd.weight");
    memset(t->data, 0, ggml_nbytes(t));
    gguf_add_tensor(g, t);
    const std::string path = folder.file("dense.gguf");
    CHECK(gguf_write_to_file(g, path.c_str(), false));
    CHECK_EQUAL(code_of(path), ENGINE_NOT_MOE);
    gguf_set_val_u32(g, "llama.expert_count", 8);
    gguf_set_val_u32(g, "llama.expert_used_count", 2);
    CHECK(gguf_write_to_file(g, path.c_str(), false));
    CHECK_EQUAL(code_of(path), ENGINE_NOT_MOE);
    gguf_set_val_u16(g, "split.count", 3);
    CHECK(gguf_write_to_file(g, path.c_str(), false));
    CHECK_EQUAL(code_of(path), ENGINE_MODEL_FORMAT);
    gguf_free(g);
    ggml_free(context);
}

int main() {
    temporary_folder folder;
    std::ifstream in(MODEL, std::ios::binary);
    const std::vector<char> model((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    describes_the_reference_model();
    refuses_every_truncation(folder, model);
    survives_flipped_bytes(folder, model);
    names_sizes_that_lie(folder, model);
    tells_a_dense_model_from_no_model(folder);
    return checks_done();
}
