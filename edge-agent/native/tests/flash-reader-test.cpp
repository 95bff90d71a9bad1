#include "flash-reader.h"

#include "check.h"

#include <cstring>

static char byte_at(uint64_t i) { return char((i * 2654435761u) >> 13); }

static std::string write_file(const temporary_folder & folder, uint64_t bytes) {
    const std::string path = folder.file("data");
    FILE * f = fopen(path.c_str(), "wb");
    for (uint64_t i = 0; i < bytes; i++) fputc(byte_at(i), f);
    fclose(f);
    return path;
}

static bool holds(const char * data, uint64_t offset, uint64_t bytes) {
    for (uint64_t i = 0; i < bytes; i++) {
        if (data[i] != byte_at(offset + i)) return false;
    }
    return true;
}

static void reads_any_alignment(const std::string & path, bool direct, int lanes) {
    flash_reader reader;
    REQUIRE_OK(flash_reader_open(reader, path, direct, lanes));
    const uint64_t offsets[] = {0, 1, 31, 4095, 4096, 4097, 100000, (1 << 20) - 7, 1 << 20};
    const uint64_t sizes[] = {1, 32, 4096, 8192, 26112, 78336, (1 << 20) + 1, 2500000};
    char * area = nullptr;
    if (posix_memalign(reinterpret_cast<void **>(&area), 4096, 4 << 20) != 0) exit(1);
    for (const uint64_t offset : offsets) {
        for (const uint64_t bytes : sizes) {
            for (const uint64_t shift : {uint64_t(0), offset % 4096, uint64_t(5)}) {
                memset(area, 0x55, 4 << 20);
                std::vector<flash_slice> slices(size_t(flash_slices_needed(bytes)));
                const int n = flash_slices(offset, bytes, area + 64 + shift, 0, "t", slices.data());
                CHECK(n <= flash_slices_needed(bytes));
                REQUIRE_OK(flash_reader_read(reader, slices.data(), n));
                CHECK(holds(area + 64 + shift, offset, bytes));
                CHECK_EQUAL(area[63 + shift], 0x55);
                CHECK_EQUAL(area[64 + shift + bytes], 0x55);
            }
        }
    }
    // The same in place: congruent address and offset, whole blocks.
    flash_slice slice[4];
    const int n = flash_slices(8192, 16384, area, 0, "t", slice);
    CHECK_EQUAL(n, 1);
    REQUIRE_OK(flash_reader_read(reader, slice, n));
    CHECK(holds(area, 8192, 16384));
    CHECK_EQUAL(slice[0].reads, 1);
    CHECK(slice[0].end_ns >= slice[0].begin_ns);
    free(area);
    flash_reader_close(reader);
}

static void reads_many_slices_at_once(const std::string & path) {
    flash_reader reader;
    REQUIRE_OK(flash_reader_open(reader, path, true, 4));
    std::vector<char> out(300 * 5000);
    for (int round = 0; round < 50; round++) {
        std::vector<flash_slice> slices(600);
        int n = 0;
        for (int i = 0; i < 300; i++) {
            n += flash_slices(uint64_t(i) * 7001, 5000, out.data() + i * 5000, i, "t", slices.data() + n);
        }
        REQUIRE_OK(flash_reader_read(reader, slices.data(), n));
        CHECK(holds(out.data() + 299 * 5000, 299 * 7001, 5000));
    }
    flash_reader_close(reader);
}

static void names_the_tensor_when_the_file_is_short(const std::string & path, uint64_t bytes, bool direct) {
    flash_reader reader;
    REQUIRE_OK(flash_reader_open(reader, path, direct, 2));
    std::vector<char> out(20000);
    flash_slice slices[4];
    const int n = flash_slices(bytes - 5000, 10000, out.data(), 0, "blk.3.ffn_up_exps.weight", slices);
    const engine_status status = flash_reader_read(reader, slices, n);
    CHECK_EQUAL(status.code, ENGINE_IO);
    CHECK(strstr(status.message, "blk.3.ffn_up_exps.weight") != nullptr);
    CHECK(strstr(status.message, "ended early") != nullptr);
    // The reader is fine for the next batch.
    const int again = flash_slices(bytes - 5000, 5000, out.data(), 0, "t", slices);
    REQUIRE_OK(flash_reader_read(reader, slices, again));
    CHECK(holds(out.data(), bytes - 5000, 5000));
    flash_reader_close(reader);
}

int main() {
    temporary_folder folder;
    const uint64_t bytes = 4 * 1000 * 1000 + 123;
    const std::string path = write_file(folder, bytes);
    reads_any_alignment(path, true, 3);
    reads_any_alignment(path, false, 1);
    reads_many_slices_at_once(path);
    names_the_tensor_when_the_file_is_short(path, bytes, true);
    names_the_tensor_when_the_file_is_short(path, bytes, false);
    flash_reader missing;
    CHECK_EQUAL(flash_reader_open(missing, folder.file("absent"), true, 1).code, ENGINE_IO);
    flash_reader none;
    CHECK_EQUAL(flash_reader_open(none, path, true, 0).code, ENGINE_BAD_ARGUMENT);
    return checks_done();
}
