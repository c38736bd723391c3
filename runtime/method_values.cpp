#include "runtime/method_values.h"

#include <algorithm>
#include <boost/program_options.hpp>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace thermocline {
namespace {

namespace po = boost::program_options;

const std::string kBase = "base";

std::string list_of(std::span<const std::string> names) {
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
  return list;
}

}  // namespace

Result<MethodValues> MethodValues::read(const std::string& path,
                                        std::span<const std::string> overrides,
                                        std::span<const std::string> known) {
  TL_TRY_ASSIGN(Values values, read_file(path, known));
  for (auto& [key, given] : values) given.order = 1;
  if (const auto base = values.find(kBase); base != values.end()) {
    TL_TRY_ASSIGN(Values inherited, read_base(path, base->second.text, known));
    values.merge(inherited);  // what both give stays the file's
  }
  std::size_t order = 1;
  for (const std::string& override_text : overrides) {
    if (override_text.find('\n') != std::string::npos)
      return fail(ErrorCode::invalid_argument,
                  "an override of a method is one line, section.name=value, not several");
    if (override_text.find('=') == std::string::npos)
      return fail(ErrorCode::invalid_argument, "'", override_text,
                  "' is not of the form section.name=value");
    std::istringstream line(override_text);
    TL_TRY_ASSIGN(const Values more, parse("'" + override_text + "'", line, known));
    if (more.empty())
      return fail(ErrorCode::invalid_argument, "'", override_text,
                  "' is not of the form section.name=value");
    if (more.contains(kBase))
      return fail(ErrorCode::invalid_argument, "'", override_text,
                  "': a base is what a method's file is written over; name that method itself");
    ++order;
    for (const auto& [key, value] : more) values[key] = {value.text, value.source, order};
  }
  return MethodValues(path, std::move(values));
}

Result<MethodValues::Values> MethodValues::read_file(const std::string& path,
                                                     std::span<const std::string> known) {
  std::ifstream file(path);
  if (!file) return fail(ErrorCode::io, "method file '", path, "' cannot be read");
  return parse(path, file, known);
}

Result<MethodValues::Values> MethodValues::read_base(const std::string& path,
                                                     const std::string& base,
                                                     std::span<const std::string> known) {
  const auto refuse = [&](const auto&... why) {
    return fail(ErrorCode::invalid_argument, path, ": ", kBase, " = '", base, "' ", why...);
  };
  const std::filesystem::path file = std::filesystem::path(path).replace_filename(base + ".conf");
  std::error_code ignored;
  if (base.empty() || base.find('/') != std::string::npos ||
      !std::filesystem::is_regular_file(file, ignored))
    return refuse("is no method of the same folder: there is no file '", file.string(),
                  "'; a base of another folder is copied beside this file");
  TL_TRY_ASSIGN(Values values, read_file(file, known));
  if (const auto further = values.find(kBase); further != values.end())
    return refuse("has itself a base, '", further->second.text, "': name one that has none");
  return values;
}

Result<MethodValues::Values> MethodValues::parse(const std::string& source, std::istream& text,
                                                 std::span<const std::string> known) {
  po::options_description options;
  for (const std::string& name : known)
    options.add_options()(name.c_str(), po::value<std::string>());
  Values values;
  try {
    for (const auto& option : po::parse_config_file(text, options).options) {
      if (values.count(option.string_key))
        return fail(ErrorCode::invalid_argument, source, ": ", option.string_key,
                    " is given twice");
      values[option.string_key] = {option.value.empty() ? "" : option.value[0], source};
    }
  } catch (const po::unknown_option& unknown) {
    const std::string name = unknown.get_option_name();
    std::string meant;
    for (const std::string& one : known)
      if (one.ends_with("." + name)) meant += (meant.empty() ? " (" : " or ") + one;
    return fail(ErrorCode::invalid_argument, source, ": '", name, "' is not a parameter",
                meant.empty() ? "" : meant + "?)", "; known: ", list_of(known));
  } catch (const po::error& error) {
    return fail(ErrorCode::invalid_argument, source, ": ", error.what());
  }
  return values;
}

std::string MethodValues::choices() const {
  std::string all;
  for (const auto& [key, given] : values_) {
    if (key.find('.') == std::string::npos) continue;  // a description
    all += (all.empty() ? "" : ", ") + key + "=" + given.text;
  }
  return all;
}

std::string MethodValues::text(const std::string& key, const std::string& otherwise) const {
  const auto found = values_.find(key);
  return found == values_.end() ? otherwise : found->second.text;
}

const std::string& MethodValues::source(const std::string& key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? file_ : found->second.source;
}

bool MethodValues::said_after(const std::string& key, const std::string& other) const {
  const auto found = values_.find(key), before = values_.find(other);
  if (found == values_.end()) return false;
  return before == values_.end() || found->second.order >= before->second.order;
}

Result<double> MethodValues::number(const std::string& key, double otherwise, double least,
                                    double most, std::optional<double> automatic) const {
  const auto found = values_.find(key);
  if (found == values_.end()) return otherwise;
  const std::string& text = found->second.text;
  if (automatic && text == "auto") return *automatic;
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || !(value >= least) ||
      !(value <= most))
    return fail(ErrorCode::invalid_argument, source(key), ": ", key, " = '", text,
                "' is not a number from ", written(least), " to ", written(most),
                automatic ? ", nor auto" : "");
  return value;
}

Result<std::uint32_t> MethodValues::integer(const std::string& key, std::uint32_t otherwise,
                                            double least, double most) const {
  TL_TRY_ASSIGN(const double value, number(key, otherwise, least, most));
  if (value != std::floor(value))
    return fail(ErrorCode::invalid_argument, source(key), ": ", key, " = ", written(value),
                " is not a whole number");
  return static_cast<std::uint32_t>(value);
}

Result<std::uint32_t> MethodValues::word(const std::string& key, std::uint32_t otherwise,
                                         std::span<const std::string_view> words) const {
  const auto found = values_.find(key);
  if (found == values_.end()) return otherwise;
  const auto word = std::find(words.begin(), words.end(), found->second.text);
  if (word != words.end()) return static_cast<std::uint32_t>(word - words.begin());
  std::string known;
  for (const std::string_view w : words) known += (known.empty() ? "" : ", ") + std::string(w);
  return fail(ErrorCode::invalid_argument, source(key), ": ", key, " = '", found->second.text,
              "' is not known; known: ", known);
}

std::string MethodSection::path(std::string_view parameter) const {
  const std::filesystem::path given = text(parameter, "");
  const std::filesystem::path named_by = source(parameter);
  std::error_code ignored;
  if (given.is_absolute() || !std::filesystem::is_regular_file(named_by, ignored)) return given;
  return named_by.parent_path() / given;
}

}  // namespace thermocline
