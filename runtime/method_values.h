// What a method's file says, before anybody knows what it means: `section.name = value` lines, and
// who said each, so that every error names its cause and the parameter.
//
// A file may name a `base`: another method of its folder, of which it says what is different. A
// base has none itself, so that what a method is can be read in two files at most.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"
#include "tiers/parameter.h"

namespace thermocline {

class MethodValues {
 public:
  // `path` exists. What it says wins over its base, and `overrides` ("select.share=0.05") win over
  // both, the last one most. A name that is not in `known`, or that is given twice, is
  // invalid_argument with the list of those that are. So is a base that there is not or that has
  // one, and one that an override names.
  static Result<MethodValues> read(const std::string& path, std::span<const std::string> overrides,
                                   std::span<const std::string> known);

  // All that was given of the choices and their parameters, in one order: "select.by=sketch, ...".
  std::string choices() const;
  bool has(const std::string& key) const { return values_.count(key) != 0; }
  std::string text(const std::string& key, const std::string& otherwise) const;
  // The file, or the override, that gave `key`; the file where nobody did.
  const std::string& source(const std::string& key) const;
  // `key` was given, and by nobody whom the one that gave `other` wins over.
  bool said_after(const std::string& key, const std::string& other) const;
  // Both ends are allowed.
  // `automatic`: what the word `auto` stands for, where there is such a word.
  Result<double> number(const std::string& key, double otherwise, double least, double most,
                        std::optional<double> automatic = {}) const;
  Result<std::uint32_t> integer(const std::string& key, std::uint32_t otherwise, double least,
                                double most) const;
  // Which of `words`; as a number.
  Result<std::uint32_t> word(const std::string& key, std::uint32_t otherwise,
                             std::span<const std::string_view> words) const;

 private:
  struct Given {
    std::string text, source;
    std::size_t order = 0;  // of who gave it: base, file, overrides; a later one wins
  };
  using Values = std::map<std::string, Given>;
  static Result<Values> parse(const std::string& source, std::istream& text,
                              std::span<const std::string> known);
  static Result<Values> read_file(const std::string& path, std::span<const std::string> known);
  // What the file's base says.
  static Result<Values> read_base(const std::string& path, const std::string& base,
                                  std::span<const std::string> known);
  MethodValues(std::string file, Values values)
      : file_(std::move(file)), values_(std::move(values)) {}

  std::string file_;
  Values values_;
};

// The parameters of one choice, which lie in its question's section. A view.
class MethodSection {
 public:
  MethodSection(const MethodValues& values, std::string_view name) : values_(values), name_(name) {}

  std::string key(std::string_view parameter) const { return name_ + "." + std::string(parameter); }
  std::string text(std::string_view parameter, const std::string& otherwise) const {
    return values_.text(key(parameter), otherwise);
  }
  const std::string& source(std::string_view parameter) const {
    return values_.source(key(parameter));
  }
  bool said_after(std::string_view parameter, std::string_view other) const {
    return values_.said_after(key(parameter), key(other));
  }
  // As text(): the name of a file, which the method's file may give beside itself.
  std::string path(std::string_view parameter) const;
  // What the section gives of some options; the rest stays as it is. unsupported: one that has no
  // effect beside another, unless what made it so was said over it, as of a method with fewer
  // parts.
  template <typename Options>
  Status read(std::span<const Parameter<Options>> parameters, Options* options) const {
    TL_TRY(read_each(parameters, options));
    for (const Parameter<Options>& p : parameters)
      for (const Parameter<Options>& other : parameters) {
        const bool off = other.of(*options) == 0;
        const bool idle = (off && other.name == p.needs) || (!off && other.name == p.yields_to);
        if (idle && said_after(p.name, other.name))
          return fail(ErrorCode::unsupported, source(p.name), ": ", key(p.name),
                      " has no effect where ", key(other.name), " = ", other.written_of(*options),
                      ": leave it out, or give another ", key(other.name));
      }
    return {};
  }

 private:
  template <typename Options>
  Status read_each(std::span<const Parameter<Options>> parameters, Options* options) const {
    for (const Parameter<Options>& p : parameters) {
      if (const auto* member = std::get_if<double Options::*>(&p.member)) {
        double& number = options->**member;
        TL_TRY_ASSIGN(number, values_.number(key(p.name), number, p.least, p.most, p.automatic));
        continue;
      }
      std::uint32_t& whole = options->*std::get<std::uint32_t Options::*>(p.member);
      if (!p.words.empty()) {
        TL_TRY_ASSIGN(whole, values_.word(key(p.name), whole, p.words));
        continue;
      }
      TL_TRY_ASSIGN(whole, values_.integer(key(p.name), whole, p.least, p.most));
    }
    return {};
  }

  const MethodValues& values_;
  std::string name_;
};

}  // namespace thermocline
