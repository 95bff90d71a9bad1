#include "model-checksums.h"

#include "check.h"

#include "gguf.h"
#include "llama.h"

#include <algorithm>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <iterator>
#include <memory>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

static const char * MODEL = FIXTURES "/tinymoe-17m-q8_0.gguf";

static std::string content(const std::string & path) {
    std::ifstream in(path, std::ios::binary);
    return std::string((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
}

static sha256_digest portable_digest(const std::string & bytes) {
    sha256_digest out;
    sha256_stream s;
    sha256_start_portable(s);
    sha256_add(s, bytes.data(), bytes.size());
    sha256_end(s, out.data());
    return out;
}

static void hashes_by_the_standard() {
    // FIPS 180-4's example of two blocks.
    const std::string text = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    const uint8_t expected[] = {0x24, 0x8d, 0x6a, 0x61, 0xd2, 0x06, 0x38, 0xb8, 0xe5, 0xc0, 0x26, 0x93, 0x0c, 0x3e, 0x60, 0x39,
                                0xa3, 0x3c, 0xe4, 0x59, 0x64, 0xff, 0x21, 0x67, 0xf6, 0xec, 0xed, 0xd4, 0x19, 0xdb, 0x06, 0xc1};
    CHECK(memcmp(portable_digest(text).data(), expected, sizeof(expected)) == 0);
    sha256_stream s;
    sha256_digest pieces;
    sha256_start(s);
    for (const char c : text) sha256_add(s, &c, 1);
    sha256_end(s, pieces.data());
    CHECK(pieces == portable_digest(text));
}

static write_result pack(const std::string & source, const std::string & target, bool replace = false) {
    write_result out;
    REQUIRE_OK(engine_pack(source, target, replace, nullptr, out));
    return out;
}

struct free_gguf_context { void operator()(gguf_context * g) const { gguf_free(g); } };
using gguf_pointer = std::unique_ptr<gguf_context, free_gguf_context>;

static std::string value_of(const gguf_context * g, int64_t i) {
    if (gguf_get_kv_type(g, i) == GGUF_TYPE_STRING) return gguf_get_val_str(g, i);
    if (gguf_get_kv_type(g, i) != GGUF_TYPE_ARRAY) return std::string(static_cast<const char *>(gguf_get_val_data(g, i)), 1);
    std::string all;
    for (size_t n = 0; n < gguf_get_arr_n(g, i); n++) {
        if (gguf_get_arr_type(g, i) == GGUF_TYPE_STRING) all += std::string(gguf_get_arr_str(g, i, n)) + '\n';
        else if (gguf_get_arr_type(g, i) == GGUF_TYPE_FLOAT32) all += std::to_string(static_cast<const float *>(gguf_get_arr_data(g, i))[n]);
        else if (gguf_get_arr_type(g, i) == GGUF_TYPE_INT32) all += std::to_string(static_cast<const int32_t *>(gguf_get_arr_data(g, i))[n]);
    }
    return all;
}

// Read by ggml's own reader, and hashed by the portable implementation.
static void keeps_everything_and_tells_its_digests(const std::string & packed) {
    const gguf_pointer a(gguf_init_from_file(MODEL, {true, nullptr})), b(gguf_init_from_file(packed.c_str(), {true, nullptr}));
    const std::string source = content(MODEL), copy = content(packed);
    CHECK_EQUAL(gguf_get_alignment(b.get()), 4096u);
    for (int64_t i = 0; i < gguf_get_n_kv(a.get()); i++) {
        const char * key = gguf_get_key(a.get(), i);
        const int64_t there = gguf_find_key(b.get(), key);
        CHECK(there >= 0 && (strcmp(key, "general.alignment") == 0 || value_of(a.get(), i) == value_of(b.get(), there)));
    }
    CHECK_EQUAL(gguf_get_n_tensors(b.get()), gguf_get_n_tensors(a.get()));
    for (int64_t i = 0; i < gguf_get_n_tensors(a.get()); i++) {
        const int64_t there = gguf_find_tensor(b.get(), gguf_get_tensor_name(a.get(), i));
        const size_t from = gguf_get_data_offset(a.get()) + gguf_get_tensor_offset(a.get(), i);
        const size_t to = gguf_get_data_offset(b.get()) + gguf_get_tensor_offset(b.get(), there);
        CHECK_EQUAL(to % 4096, 0u);
        CHECK_EQUAL(gguf_get_tensor_size(b.get(), there), gguf_get_tensor_size(a.get(), i));
        CHECK(source.compare(from, gguf_get_tensor_size(a.get(), i), copy, to, gguf_get_tensor_size(a.get(), i)) == 0);
    }

    model_file file;
    model_checksums sums;
    REQUIRE_OK(model_file_read(packed, file));
    REQUIRE_OK(model_checksums_read(file, sums));
    CHECK_EQUAL(file.info.pack_version, 1);
    CHECK_EQUAL(sums.experts.size(), 6u * 32);
    for (const auto & [layer, expert] : {std::pair<int, size_t>{0, 0}, {3, 17}, {5, 31}}) {
        std::string bytes;
        for (const char * kind : {"down", "gate", "up"}) {
            const std::string name = "blk." + std::to_string(layer) + ".ffn_" + kind + "_exps.weight";
            const int64_t i = gguf_find_tensor(a.get(), name.c_str());
            const size_t size = gguf_get_tensor_size(a.get(), i) / 32;
            bytes += source.substr(gguf_get_data_offset(a.get()) + gguf_get_tensor_offset(a.get(), i) + expert * size, size);
        }
        CHECK(sums.experts[size_t(layer) * 32 + expert] == portable_digest(bytes));
    }
    size_t i = 0;
    for (const gguf_tensor * t : checksums_dense_tensors(file)) CHECK(sums.dense[i++] == portable_digest(copy.substr(t->offset, t->bytes)));
    CHECK_EQUAL(i, 105u - 18);
}

static std::vector<float> stock_logits(const std::string & path) {
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    llama_model * model = llama_model_load_from_file(path.c_str(), params);
    if (!model) exit(1);
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = 64;
    cp.n_threads = cp.n_threads_batch = 1;
    llama_context * context = llama_init_from_model(model, cp);
    std::vector<int32_t> tokens = {5, 300, 2000, 17, 4000};
    CHECK_EQUAL(llama_decode(context, llama_batch_get_one(tokens.data(), 5)), 0);
    const float * logits = llama_get_logits_ith(context, -1);
    std::vector<float> out(logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(model)));
    llama_free(context);
    llama_model_free(model);
    return out;
}

// The process is ended by a signal in the middle of a write, at a byte of the file that chance chose.
static void end_while_packing(const std::string & target, rlim_t at) {
    fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
        const rlimit no_core{0, 0}, limit{at, at};
        setrlimit(RLIMIT_CORE, &no_core);
        setrlimit(RLIMIT_FSIZE, &limit);
        write_result out;
        engine_pack(MODEL, target, false, nullptr, out);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGXFSZ);
    CHECK(access(target.c_str(), F_OK) != 0);
}

static void goes_on_where_it_was_stopped(const temporary_folder & folder, const std::string & whole) {
    uint64_t state = 4711;
    for (int i = 0; i < 6; i++) {
        const std::string target = folder.file("resumed.gguf"), part = target + ".part";
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        const uint64_t stopped = 200000 + (state >> 33) % (whole.size() - 200000);
        end_while_packing(target, stopped);
        CHECK_EQUAL(content(part).size(), stopped);
        if (i == 1) end_while_packing(target, stopped + (whole.size() - stopped) / 2);  // twice
        uint64_t expected = i == 1 ? stopped + (whole.size() - stopped) / 2 : stopped;
        if (i >= 3) {
            // What a power cut leaves: a length, and zeros or older bytes where data had not reached the disk.
            const uint64_t torn = stopped - std::min<uint64_t>(stopped - 150000, 40000 * uint64_t(i));
            const int fd = open(part.c_str(), O_WRONLY);
            const std::string other(stopped - torn, char(0xa5));
            CHECK_EQUAL(pwrite(fd, other.data(), other.size(), off_t(torn)), ssize_t(other.size()));
            close(fd);
            expected = torn;
        }
        const write_result out = pack(MODEL, target);
        CHECK(content(target) == whole);
        CHECK(out.kept >= expected && out.kept <= expected + 4096);  // chance may agree with a byte or two
        CHECK(access(part.c_str(), F_OK) != 0);
        unlink(target.c_str());
    }
}

static void starts_anew_where_the_rest_is_of_another_file(const temporary_folder & folder, const std::string & whole) {
    const std::string target = folder.file("other.gguf"), part = target + ".part";
    std::string before = whole;
    before[300] = char(before[300] ^ 1);  // in the header
    std::ofstream(part, std::ios::binary) << before << "and some more";
    CHECK_EQUAL(pack(MODEL, target).kept, 0u);
    CHECK(content(target) == whole);
    // The digests are written last; an attempt that ended there begins with the same header none the less.
    std::ofstream(part, std::ios::binary) << whole;
    CHECK_EQUAL(pack(MODEL, target, true).kept, whole.size());
    CHECK(content(target) == whole);
    std::ofstream(part, std::ios::binary) << "x";
    CHECK_EQUAL(pack(MODEL, target, true).kept, 0u);
    CHECK(content(target) == whole);
}

static void refuses_what_it_should(const temporary_folder & folder, const std::string & packed) {
    write_result out;
    engine_status status = engine_pack(MODEL, packed, false, nullptr, out);
    CHECK_EQUAL(status.code, ENGINE_BAD_ARGUMENT);
    CHECK(strstr(status.message, "exists already") != nullptr);
    CHECK_EQUAL(engine_pack(MODEL, folder.path, true, nullptr, out).code, ENGINE_BAD_ARGUMENT);
    CHECK_EQUAL(engine_pack(MODEL, folder.file("none/x.gguf"), false, nullptr, out).code, ENGINE_IO);
    CHECK_EQUAL(engine_pack(FIXTURES "/code.txt", folder.file("x.gguf"), false, nullptr, out).code, ENGINE_MODEL_FORMAT);
    status = engine_pack(MODEL, folder.file("x.gguf"), false, [](int64_t, int64_t) { return false; }, out);
    CHECK_EQUAL(status.code, ENGINE_CANCELLED);
    CHECK(access(folder.file("x.gguf").c_str(), F_OK) != 0);
    CHECK(pack(MODEL, folder.file("x.gguf")).kept > 0);
    check_result checked;
    status = engine_check(MODEL, nullptr, checked);
    CHECK_EQUAL(status.code, ENGINE_BAD_ARGUMENT);
    CHECK(strstr(status.message, "moefleet model pack") != nullptr);
}

static void flip(const std::string & path, uint64_t at) {
    const int fd = open(path.c_str(), O_RDWR);
    char byte = 0;
    CHECK_EQUAL(pread(fd, &byte, 1, off_t(at)), 1);
    byte = char(byte ^ 0x10);
    CHECK_EQUAL(pwrite(fd, &byte, 1, off_t(at)), 1);
    close(fd);
}

static void names_what_is_damaged(const std::string & packed) {
    check_result checked;
    REQUIRE_OK(engine_check(packed, nullptr, checked));
    CHECK_EQUAL(checked.damaged_count, 0u);
    model_file file;
    REQUIRE_OK(model_file_read(packed, file));
    const expert_matrix & m = file.layers[3].matrices[1];
    flip(packed, m.offset + 17 * m.expert_bytes + 4321);
    flip(packed, checksums_dense_tensors(file)[2]->offset + 5);
    const std::string token = "\xe2\x96\x81the";  // a vocabulary entry
    flip(packed, content(packed).find(token) + 4);
    REQUIRE_OK(engine_check(packed, nullptr, checked));
    write_result out;
    const engine_status status = engine_pack(packed, packed + ".copy", false, nullptr, out);  // would make it look right
    CHECK_EQUAL(status.code, ENGINE_MODEL_FORMAT);
    CHECK(strstr(status.message, "checksum mismatch") != nullptr);
    CHECK_EQUAL(checked.damaged_count, 3u);
    CHECK(checked.damaged == (std::vector<std::string>{"the header", checksums_dense_tensors(file)[2]->name, "blk.3 expert 17"}));
}

int main() {
    temporary_folder folder;
    const std::string packed = folder.file("packed.gguf"), again = folder.file("again.gguf");
    hashes_by_the_standard();
    const write_result out = pack(MODEL, packed);
    const std::string whole = content(packed);
    CHECK_EQUAL(out.bytes, whole.size());
    CHECK_EQUAL(out.kept, 0u);
    keeps_everything_and_tells_its_digests(packed);
    CHECK(stock_logits(MODEL) == stock_logits(packed));
    pack(packed, again);  // packing what is packed changes nothing
    CHECK(content(again) == whole);
    goes_on_where_it_was_stopped(folder, whole);
    starts_anew_where_the_rest_is_of_another_file(folder, whole);
    refuses_what_it_should(folder, packed);
    names_what_is_damaged(packed);
    return checks_done();
}
