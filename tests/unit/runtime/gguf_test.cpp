#include "runtime/model/gguf.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>

#include "tests/support/gguf_writer.h"
#include "tests/support/models.h"

namespace thermocline {
namespace {

using test::append;
using test::append_string;
using test::Bytes;
using test::bytes_of;
using test::GgufWriter;

constexpr const char* kName = "bad.gguf";

std::uint32_t id(GgufType type) { return static_cast<std::uint32_t>(type); }

// All kinds of values and tensors, in under a kilobyte.
GgufWriter sound() {
  GgufWriter w;
  w.add_string("general.architecture", "llama");
  w.add_u32("llama.block_count", 30).add_u64("big", 1ull << 40).add_i32("minus", -7);
  w.add_f32("eps", 1e-5f).add_bool("yes", true);
  w.add_raw("small", id(GgufType::u8), bytes_of(std::string_view("\x2a")));
  w.add_strings("words", std::vector<std::string>{"a", "", "caf\xc3\xa9"});
  w.add_i32s("ints", std::vector<std::int32_t>{1, -2, 3});
  w.add_f32s("floats", std::vector<float>{0.5f, -1.0f});
  const float values[64] = {1.0f, 2.0f, 3.0f};
  w.add_f32_tensor("a", {8, 4}, std::span(values).first(32));
  w.add_tensor("b", WeightType::q4_0, {32, 2}, Bytes(36, std::byte{1}));
  w.add_f32_tensor("c", {3}, std::span(values).first(3));
  return w;
}

std::string message_of(const Bytes& bytes) {
  const auto file = GgufFile::parse(bytes, kName);
  return file ? "" : file.error().message;
}

// One line, and it says which file.
void expect_refused(const Bytes& bytes, std::string_view part, const std::string& what) {
  const auto file = GgufFile::parse(bytes, kName);
  ASSERT_FALSE(file) << what << " was accepted";
  const std::string& message = file.error().message;
  EXPECT_TRUE(message.starts_with(kName)) << what << ": " << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << what << ": " << message;
  EXPECT_LT(message.size(), 400u) << what << ": " << message;
  EXPECT_NE(message.find(part), std::string::npos) << what << ": " << message;
}

TEST(Gguf, ReadsWhatWasWritten) {
  for (std::uint32_t version : {2u, 3u}) {
    const Bytes bytes = sound().version(version).bytes();
    const auto file = GgufFile::parse(bytes, "ok");
    ASSERT_TRUE(file) << file.error().message;
    EXPECT_EQ(file->version(), version);
    EXPECT_EQ(file->metadata().size(), 10u);
    EXPECT_EQ(file->get<std::string_view>("general.architecture").value(), "llama");
    EXPECT_EQ(file->get<std::uint32_t>("llama.block_count").value(), 30u);
    EXPECT_EQ(file->get<std::int8_t>("llama.block_count").value(), 30);
    EXPECT_EQ(file->get<float>("llama.block_count").value(), 30.0f);
    EXPECT_EQ(file->get<std::int64_t>("minus").value(), -7);
    EXPECT_EQ(file->get<double>("eps").value(), static_cast<double>(1e-5f));
    EXPECT_TRUE(file->get<bool>("yes").value());
    EXPECT_EQ(file->get<std::uint64_t>("small").value(), 42u);
    EXPECT_EQ(file->get_array<std::string_view>("words").value(),
              (std::vector<std::string_view>{"a", "", "caf\xc3\xa9"}));
    EXPECT_EQ(file->get_array<std::int64_t>("ints").value(), (std::vector<std::int64_t>{1, -2, 3}));
    EXPECT_EQ(file->get_array<float>("floats").value(), (std::vector<float>{0.5f, -1.0f}));
    EXPECT_EQ(file->get_or<std::uint32_t>("absent", 5).value(), 5u);

    ASSERT_EQ(file->tensors().size(), 3u);
    const TensorInfo a = file->tensor("a").value();
    EXPECT_EQ(a.cols(), 8u);
    EXPECT_EQ(a.rows(), 4u);
    EXPECT_EQ(a.shape(), "8 x 4");
    EXPECT_EQ(a.data.size(), 128u);
    float second = 0;
    std::memcpy(&second, a.data.data() + 4, 4);
    EXPECT_EQ(second, 2.0f);
    const TensorInfo b = file->tensor("b").value();
    EXPECT_EQ(b.type, WeightType::q4_0);
    EXPECT_EQ(b.view().rows, 2u);
    EXPECT_EQ(b.data.size(), b.view().bytes());
    EXPECT_EQ(b.offset % file->alignment(), 0u);
    EXPECT_EQ(b.data[0], std::byte{1});
  }
}

TEST(Gguf, RefusesConversionsThatLoseSomething) {
  const Bytes bytes = sound().add_f32("inf", std::numeric_limits<float>::infinity()).bytes();
  const auto file = GgufFile::parse(bytes, kName);
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_FALSE(file->get<std::uint32_t>("big"));       // too large
  EXPECT_FALSE(file->get<std::uint32_t>("minus"));     // negative
  EXPECT_FALSE(file->get<std::uint32_t>("eps"));       // a float
  EXPECT_FALSE(file->get<std::uint32_t>("yes"));       // a bool
  EXPECT_FALSE(file->get<bool>("small"));              // a number
  EXPECT_FALSE(file->get<std::uint32_t>("words"));     // an array
  EXPECT_FALSE(file->get<std::string_view>("small"));  // a number
  EXPECT_FALSE(file->get<float>("general.architecture"));
  EXPECT_FALSE(file->get_array<float>("words"));
  EXPECT_FALSE(file->get_array<std::uint32_t>("ints"));  // -2
  EXPECT_FALSE(file->get_array<std::int32_t>("minus"));  // no array
  EXPECT_FALSE(file->get_or<bool>("small", true));       // there, and of another type
  const auto missing = file->get<bool>("absent");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ErrorCode::not_found);
  const auto negative = file->get<std::uint32_t>("minus");
  EXPECT_NE(negative.error().message.find("\"minus\" is -7 (i32), a u32 was expected"),
            std::string::npos)
      << negative.error().message;
  const auto tensor = file->tensor("nothing\n");
  ASSERT_FALSE(tensor);
  EXPECT_EQ(tensor.error().message.find('\n'), std::string::npos);
}

TEST(Gguf, ShowsValuesOnOneLine) {
  const Bytes bytes = sound().add_string("text", "two\nlines \x1b[31m\xff").bytes();
  const auto file = GgufFile::parse(bytes, "ok");
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(GgufFile::show(*file->find("llama.block_count")), "30");
  EXPECT_EQ(GgufFile::show(*file->find("yes")), "true");
  EXPECT_EQ(GgufFile::show(*file->find("ints")), "3 i32 [1, -2, 3]");
  EXPECT_EQ(GgufFile::show(*file->find("words")), "3 string [\"a\", \"\", \"caf\xc3\xa9\"]");
  EXPECT_EQ(GgufFile::show(*file->find("text")), "\"two\\nlines \\x1b[31m\\xff\"");
}

TEST(Gguf, OpensAndOutlivesMoves) {
  const auto path = std::filesystem::temp_directory_path() /
                    ("gguf_test_" + std::to_string(::getpid()) + ".gguf");
  ASSERT_TRUE(sound().write(path));
  auto opened = GgufFile::open(path);
  std::filesystem::remove(path);  // the mapping stays
  ASSERT_TRUE(opened) << opened.error().message;
  const TensorInfo a = opened->tensor("a").value();
  GgufFile moved = std::move(*opened);
  const Bytes other = GgufWriter().bytes();
  GgufFile again = GgufFile::parse(other, "other").value();
  again = std::move(moved);
  EXPECT_EQ(again.tensor("a").value().data.data(), a.data.data());
  EXPECT_EQ(again.get<std::string_view>("general.architecture").value(), "llama");

  EXPECT_EQ(GgufFile::open("/nonexistent/x.gguf").error().code, ErrorCode::not_found);
  EXPECT_FALSE(GgufFile::open("/tmp"));
  EXPECT_FALSE(GgufFile::open("/dev/null"));
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_FALSE(GgufFile::open(path));  // and does not wait for a writer
  std::filesystem::remove(path);
}

// A file without tensors need not be padded.
TEST(Gguf, TakesAVocabularyAlone) {
  Bytes bytes = GgufWriter().add_string("k", "v").bytes();
  bytes.resize(24 + 8 + 1 + 4 + 8 + 1);
  EXPECT_EQ(message_of(bytes), "");
}

struct Bad {
  std::string what;
  std::string part;  // of the message
  Bytes bytes;
};

Bytes changed(Bytes bytes, std::size_t at, std::uint64_t value, std::size_t width) {
  std::memcpy(bytes.data() + at, &value, width);
  return bytes;
}

Bytes length_prefixed(std::uint64_t claimed, std::string_view text) {
  Bytes out;
  append(&out, claimed);
  const Bytes raw = bytes_of(text);
  out.insert(out.end(), raw.begin(), raw.end());
  return out;
}

Bytes array_header(std::uint32_t element, std::uint64_t count) {
  Bytes out;
  append(&out, element);
  append(&out, count);
  return out;
}

constexpr std::uint64_t kWild[] = {
    1ull << 20,          (1ull << 26) + 1, 1ull << 31,          1ull << 32,
    (1ull << 32) + 1,    1ull << 61,       (1ull << 61) + 1,    1ull << 62,
    (1ull << 63) - 1,    1ull << 63,       0xffffffffffffff00u, 0xfffffffffffffff8u,
    0xffffffffffffffffu,
};

void preamble_cases(std::vector<Bad>* out) {
  const Bytes ok = sound().bytes();
  for (const char* magic : {"GGML", "ggjt", "gguf", "FUGG", "\0\0\0\0", "GGU\xc6"})
    out->push_back({"magic", "begins with", [&] {
                      Bytes bytes = ok;
                      std::memcpy(bytes.data(), magic, 4);
                      return bytes;
                    }()});
  for (std::uint64_t version : {0u, 1u, 4u, 0x7fffffffu, 0xffffffffu, 0x80000003u})
    out->push_back({"version", "GGUF version", changed(ok, 4, version, 4)});
  for (std::uint64_t version : {0x02000000u, 0x03000000u})
    out->push_back({"byte order", "byte order", changed(ok, 4, version, 4)});
  for (std::uint64_t count : kWild) {
    out->push_back({"tensor count", "number of tensors", changed(ok, 8, count, 8)});
    out->push_back({"metadata count", "number of metadata", changed(ok, 16, count, 8)});
  }
  // Within the limit, and more than the file can hold.
  out->push_back({"tensor count", "cannot hold so many", changed(ok, 8, 1000, 8)});
  out->push_back({"metadata count", "cannot hold so many", changed(ok, 16, 1000, 8)});
  for (std::uint64_t more : {1u, 2u}) {
    GgufWriter w = sound();
    out->push_back({"one tensor too many", "", w.claim_tensors(3 + more).bytes()});
    GgufWriter v = sound();
    out->push_back({"one entry too many", "", v.claim_metadata(10 + more).bytes()});
  }
  for (std::uint64_t fewer : {0u, 1u, 2u}) {  // the rest would be missing without a word
    GgufWriter w = sound();
    out->push_back({"tensors too few", "", w.claim_tensors(fewer).bytes()});
  }
  // Where the entries that are left out are as long as the padding, and begin where it would.
  GgufWriter aligned;
  aligned.add_tensor("name23", WeightType::f32, {8}, Bytes(32));
  out->push_back({"tensors too few", "", aligned.claim_tensors(0).bytes()});
  GgufWriter fewer = sound();  // the tenth entry is read as a tensor
  out->push_back({"an entry too few", "", fewer.claim_metadata(9).bytes()});
}

void metadata_cases(std::vector<Bad>* out) {
  // Strings: keys, values, elements, with lengths that wrap, that are huge, and that are a bit
  // long.
  for (std::uint64_t length : kWild) {
    GgufWriter value;
    value.add_raw("k", id(GgufType::string), length_prefixed(length, "abc"));
    out->push_back({"string length", "a metadata string", value.bytes()});
    GgufWriter element;
    Bytes coded = array_header(id(GgufType::string), 1);
    append(&coded, length);
    element.add_raw("k", id(GgufType::array), coded);
    out->push_back({"array string length", "a string of an array", element.bytes()});
    Bytes key = GgufWriter().add_u32("k", 1).bytes();
    out->push_back({"key length", "a metadata key", changed(key, 24, length, 8)});
    Bytes name = GgufWriter().add_raw_tensor("t", 0, {1}, 0).bytes();
    out->push_back({"tensor name length", "a tensor's name", changed(name, 24, length, 8)});
  }
  GgufWriter longer;
  longer.add_raw("k", id(GgufType::string), length_prefixed(100, "abc"));
  out->push_back({"string beyond the end", "cut short", longer.bytes()});
  // Arrays: lengths for every element type; the product wraps for some.
  for (std::uint32_t element = 0; element <= 12; ++element) {
    if (element == id(GgufType::array)) continue;
    for (std::uint64_t count : {std::uint64_t{1} << 32, std::uint64_t{1} << 61,
                                (std::uint64_t{1} << 62) + 1, ~std::uint64_t{0}}) {
      GgufWriter w;
      w.add_raw("k", id(GgufType::array), array_header(element, count));
      out->push_back({"array length", "an array's length", w.bytes()});
    }
  }
  GgufWriter nested;
  Bytes inner = array_header(id(GgufType::array), 1);
  const Bytes one = array_header(id(GgufType::u8), 1);
  inner.insert(inner.end(), one.begin(), one.end());
  out->push_back({"nested array", "array of arrays",
                  nested.add_raw("k", id(GgufType::array), inner).add_u32("l", 1).bytes()});
  for (std::uint32_t type : {13u, 14u, 255u, 0x80000000u, 0xffffffffu}) {
    GgufWriter scalar, array;
    out->push_back({"value type", "has type", scalar.add_raw("k", type, Bytes(16)).bytes()});
    Bytes coded = array_header(type, 1);
    coded.resize(coded.size() + 8);
    out->push_back(
        {"element type", "has type", array.add_raw("k", id(GgufType::array), coded).bytes()});
  }
  for (int value : {2, 3, 127, 128, 255}) {
    GgufWriter scalar, array;
    const Bytes coded(1, static_cast<std::byte>(value));
    out->push_back(
        {"bool", "a bool of", scalar.add_raw("k", id(GgufType::boolean), coded).bytes()});
    Bytes items = array_header(id(GgufType::boolean), 2);
    items.push_back(std::byte{1});
    items.push_back(static_cast<std::byte>(value));
    out->push_back(
        {"bool of an array", "a bool of", array.add_raw("k", id(GgufType::array), items).bytes()});
  }
  for (std::string_view key :
       {std::string_view(""), std::string_view("a\nb"), std::string_view("\0", 1),
        std::string_view("a\x7f"), std::string_view("\x1b[2J")}) {
    out->push_back({"key", "a metadata key is", GgufWriter().add_u32(key, 1).bytes()});
    out->push_back({"tensor name", "a tensor's name is",
                    GgufWriter().add_tensor(key, WeightType::f32, {1}, Bytes(4)).bytes()});
  }
  const std::string endless(kGgufMaxNameBytes + 1, 'x');
  out->push_back({"key too long", "the limit", GgufWriter().add_u32(endless, 1).bytes()});
  out->push_back({"duplicate key", "is there twice", sound().add_u32("eps", 1).bytes()});
  out->push_back({"duplicate key", "is there twice", sound().add_f32("eps", 1e-5f).bytes()});
}

void alignment_cases(std::vector<Bad>* out) {
  const auto with = [](std::uint32_t type, std::uint64_t value, std::size_t width) {
    Bytes coded(width);
    std::memcpy(coded.data(), &value, width);
    return GgufWriter()
        .add_raw("general.alignment", type, coded)
        .add_tensor("t", WeightType::f32, {1}, Bytes(4))
        .bytes();
  };
  for (std::uint64_t value : {0u, 1u, 2u, 4u, 3u, 7u, 9u, 12u, 24u, 31u, 33u, 48u, 96u, 1000u,
                              0x100001u, 0x200000u, 0x40000000u, 0x80000000u, 0xffffffffu})
    out->push_back({"alignment", "general.alignment is", with(id(GgufType::u32), value, 4)});
  out->push_back({"alignment type", "must be a u32", with(id(GgufType::u64), 32, 8)});
  out->push_back({"alignment type", "must be a u32", with(id(GgufType::i32), 32, 4)});
  out->push_back({"alignment type", "must be a u32", with(id(GgufType::u8), 32, 1)});
  out->push_back({"alignment type", "must be a u32",
                  GgufWriter().add_string("general.alignment", "32").bytes()});
  out->push_back({"split model", "part 1 of 3",
                  sound().add_u32("split.count", 3).add_u32("split.no", 1).bytes()});
  out->push_back({"split type", "a u64 was expected", sound().add_i32("split.count", -1).bytes()});
}

void tensor_cases(std::vector<Bad>* out) {
  const auto tensor = [](std::uint32_t type, std::vector<std::uint64_t> dims,
                         std::uint64_t offset) {
    Bytes bytes = GgufWriter().add_raw_tensor("t", type, std::move(dims), offset).bytes();
    bytes.resize(bytes.size() + 4096);
    return bytes;
  };
  // Rank.
  out->push_back({"no dims", "0 dimensions", tensor(0, {}, 0)});
  out->push_back({"five dims", "5 dimensions", tensor(0, {1, 1, 1, 1, 1}, 0)});
  const Bytes one = tensor(0, {1}, 0);
  for (std::uint64_t rank : {6u, 255u, 0x10000u, 0x7fffffffu, 0x80000000u, 0xffffffffu})
    out->push_back({"rank", "dimensions", changed(one, 24 + 8 + 1, rank, 4)});
  // Zero dims: a division by zero elsewhere.
  for (std::size_t rank = 1; rank <= 4; ++rank)
    for (std::size_t zero = 0; zero < rank; ++zero) {
      std::vector<std::uint64_t> dims(rank, 32);
      dims[zero] = 0;
      out->push_back({"zero dim", "of 0", tensor(0, dims, 0)});
    }
  // Products that wrap or go negative, alone and in pairs.
  for (std::uint64_t dim :
       {std::uint64_t{1} << 62, (std::uint64_t{1} << 62) + 1, (std::uint64_t{1} << 63) - 1,
        std::uint64_t{1} << 63, ~std::uint64_t{0}, ~std::uint64_t{0} - 31})
    for (std::uint32_t type : {0u, 2u, 12u})
      out->push_back({"dim", "tensor \"t\"", tensor(type, {dim}, 0)});
  const std::vector<std::vector<std::uint64_t>> products = {
      {1ull << 32, 1ull << 32},
      {1ull << 32, 1ull << 31},
      {1ull << 16, 1ull << 16, 1ull << 16, 1ull << 16},
      {(1ull << 32) + 1, (1ull << 32) - 1},
      {3, 0x5555555555555556u},
      {1ull << 31, 1ull << 31, 2},
      {0x100000000u, 0x100000000u, 0x100000000u, 1},
      {32, 0x0800000000000001u},
  };
  for (const auto& dims : products)
    for (std::uint32_t type : {0u, 1u, 2u, 14u})
      out->push_back({"dims", "more values in all", tensor(type, dims, 0)});
  // Bytes that wrap where the values do not: 2^62 values of 4 bytes.
  out->push_back({"bytes", "cut short", tensor(0, {1ull << 31, 1ull << 31}, 0)});
  out->push_back({"bytes", "cut short", tensor(0, {1ull << 62}, 0)});
  // Rows that are no whole blocks.
  for (std::uint32_t type : {2u, 3u, 6u, 7u, 8u})
    for (std::uint64_t cols : {1u, 31u, 33u, 48u})
      out->push_back({"partial block", "not a multiple of 32", tensor(type, {cols, 2}, 0)});
  for (std::uint32_t type : {12u, 13u, 14u})
    for (std::uint64_t cols : {32u, 255u, 257u})
      out->push_back({"partial block", "not a multiple of 256", tensor(type, {cols}, 0)});
  // Types: known to others, removed, never there.
  for (std::uint32_t type : {4u, 5u, 9u, 10u, 11u, 15u, 16u, 20u, 23u, 24u, 28u, 31u, 34u, 39u, 43u,
                             255u, 0x80000000u, 0xffffffffu})
    out->push_back({"tensor type", "this build reads F32 F16 BF16 Q4_0", tensor(type, {256}, 0)});
  // Places.
  for (std::uint64_t offset : {1u, 4u, 8u, 16u, 31u, 33u, 0xffffffffu})
    out->push_back({"misaligned", "not a multiple of the alignment", tensor(0, {1}, offset)});
  for (std::uint64_t offset : {std::uint64_t{4096} + 32, std::uint64_t{1} << 32,
                               std::uint64_t{1} << 63, ~std::uint64_t{0} - 31})
    out->push_back({"out of file", "cut short", tensor(0, {1}, offset)});
  out->push_back({"ends out of file", "cut short", tensor(0, {2000}, 0)});
  out->push_back({"ends out of file", "cut short", tensor(0, {1032}, 0)});
  Bytes short_data = sound().bytes();
  short_data.pop_back();
  out->push_back({"last byte missing", "cut short", short_data});
  const auto pair = [](std::uint64_t first, std::uint64_t second) {
    Bytes bytes = GgufWriter()
                      .add_raw_tensor("p", 0, {16}, first)
                      .add_raw_tensor("q", 0, {16}, second)
                      .bytes();
    bytes.resize(bytes.size() + 4096);
    return bytes;
  };
  for (auto [first, second] : {std::pair{0u, 0u}, {0u, 32u}, {32u, 0u}, {64u, 96u}})
    out->push_back({"overlap", "overlap by", pair(first, second)});
  out->push_back({"hole", "belong to no tensor", pair(0, 1024)});
  out->push_back({"hole at the start", "belong to no tensor", pair(32 * 4, 32 * 6)});
  Bytes trailing = sound().bytes();
  trailing.resize(trailing.size() + 32);
  out->push_back({"bytes after the last tensor", "belong to no tensor", trailing});
  out->push_back({"duplicate tensor", "is there twice",
                  sound().add_tensor("a", WeightType::f32, {1}, Bytes(4)).bytes()});
}

std::vector<Bad> bad_files() {
  std::vector<Bad> out;
  preamble_cases(&out);
  metadata_cases(&out);
  alignment_cases(&out);
  tensor_cases(&out);
  return out;
}

// To show what cannot be run: a type that we do not read, data that are not there.
TEST(Gguf, TheHeaderAloneIsReadOfMoreFiles) {
  GgufWriter w;
  w.add_string("general.architecture", "mamba").add_u64("split.count", 3);
  w.add_raw_tensor("known", 2, {32, 5}, 0).add_raw_tensor("foreign", 10, {256, 7}, 96);
  w.add_raw_tensor("new", 99, {3}, 1024);
  const Bytes bytes = w.bytes();
  EXPECT_FALSE(GgufFile::parse(bytes, kName));
  const auto file = GgufFile::parse(bytes, kName, GgufFile::Extent::header);
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->get<std::string_view>("general.architecture").value(), "mamba");
  std::vector<std::string> shown;
  for (const TensorInfo& t : file->tensors()) {
    shown.push_back(std::string(t.type_name) + " " + t.shape());
    EXPECT_TRUE(t.data.empty());
  }
  EXPECT_EQ(shown, (std::vector<std::string>{"Q4_0 32 x 5", "Q2_K 256 x 7", "unknown 3"}));
}

TEST(GgufHostile, AHeaderIsRefusedOrReadWithoutItsData) {
  for (const Bad& bad : bad_files()) {
    const auto file = GgufFile::parse(bad.bytes, kName, GgufFile::Extent::header);
    if (!file) {
      EXPECT_TRUE(file.error().message.starts_with(kName)) << file.error().message;
      continue;
    }
    for (const GgufValue& value : file->metadata()) (void)GgufFile::show(value);
    for (const TensorInfo& t : file->tensors()) EXPECT_TRUE(t.data.empty()) << bad.what;
  }
}

TEST(GgufHostile, EveryKindIsRefused) {
  const std::vector<Bad> cases = bad_files();
  EXPECT_GE(cases.size(), 200u);
  RecordProperty("cases", static_cast<int>(cases.size()));
  for (std::size_t i = 0; i < cases.size(); ++i)
    expect_refused(cases[i].bytes, cases[i].part,
                   "case " + std::to_string(i) + " (" + cases[i].what + ")");
}

TEST(GgufHostile, EveryTruncationIsRefused) {
  const Bytes ok = sound().bytes();
  for (std::size_t size = 0; size < ok.size(); ++size) {
    const Bytes cut(ok.begin(), ok.begin() + static_cast<std::ptrdiff_t>(size));
    expect_refused(cut, "", "cut to " + std::to_string(size));
  }
}

// Whatever a flipped bit makes of a file, it is refused in a line, or it loads and every promise of
// the header holds.
TEST(GgufHostile, EveryFlippedBitIsRefusedOrHarmless) {
  Bytes bytes = sound().bytes();
  const std::size_t header = sound().header_bytes();
  std::size_t refused = 0;
  for (std::size_t bit = 0; bit < header * 8; ++bit) {
    const auto mask = static_cast<std::byte>(1u << (bit % 8));
    bytes[bit / 8] ^= mask;
    const auto file = GgufFile::parse(bytes, kName);
    if (!file) {
      ++refused;
      EXPECT_TRUE(file.error().message.starts_with(kName)) << file.error().message;
      EXPECT_EQ(file.error().message.find('\n'), std::string::npos) << file.error().message;
    } else {
      EXPECT_EQ(file->metadata().size(), 10u);
      EXPECT_EQ(file->tensors().size(), 3u);
      for (const TensorInfo& tensor : file->tensors()) {
        EXPECT_EQ(tensor.data.size(), tensor.view().bytes());
        EXPECT_LE(tensor.offset + tensor.data.size(), bytes.size());
      }
    }
    bytes[bit / 8] ^= mask;
  }
  EXPECT_GT(refused, header * 4);  // most of a header is numbers that matter
  EXPECT_EQ(message_of(bytes), "");
}

TEST(Gguf, ReadsRealModels) {
  for (const char* name : {"SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"}) {
    const auto path = test::find_model(name);
    if (!path) GTEST_SKIP() << test::model_missing(name);
    const auto file = GgufFile::open(*path);
    ASSERT_TRUE(file) << file.error().message;
    EXPECT_GT(file->tensors().size(), 200u);
    EXPECT_TRUE(file->tensor("token_embd.weight"));
    EXPECT_TRUE(file->get_array<std::string_view>("tokenizer.ggml.tokens"));
  }
}

}  // namespace
}  // namespace thermocline
