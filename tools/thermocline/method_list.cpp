#include "tools/thermocline/method_list.h"

#include <algorithm>

#include "tools/thermocline/range.h"

namespace thermocline {
namespace {

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == at)
      parts.emplace_back();
    else
      parts.back() += c;
  }
  return parts;
}

// What has a '=' is a setting; other parts are the name's, whose path may have colons.
ListedMethod split_settings(const std::string& item) {
  ListedMethod method;
  for (const std::string& part : split(item, ':')) {
    if (part.find('=') != std::string::npos)
      method.settings.push_back(part);
    else
      method.name += (method.name.empty() ? "" : ":") + part;
  }
  return method;
}

// The same method with each value of its settings.
std::vector<ListedMethod> with_each_value(const ListedMethod& method) {
  std::vector<ListedMethod> all{{method.name, {}}};
  for (const std::string& setting : method.settings) {
    const std::size_t equals = setting.find('=');
    std::vector<ListedMethod> more;
    for (const ListedMethod& so_far : all)
      for (const std::string& value : split(setting.substr(equals + 1), '/')) {
        more.push_back(so_far);
        more.back().settings.push_back(setting.substr(0, equals + 1) + value);
      }
    all = std::move(more);
  }
  return all;
}

}  // namespace

std::string ListedMethod::label() const {
  std::string label = name;
  for (const std::string& setting : settings) label += ":" + setting;
  return label;
}

Result<std::vector<ListedMethod>> parse_method_list(std::span<const std::string> lists,
                                                    const std::string& flag) {
  std::vector<ListedMethod> methods;
  for (const std::string& list : lists) {
    TL_TRY_ASSIGN(const std::vector<std::string> items, parse_list(list, flag));
    for (const std::string& item : items) {
      const ListedMethod asked = split_settings(item);
      if (asked.name.empty())
        return fail(ErrorCode::invalid_argument, flag, " '", item,
                    "': a name comes first, as in sketch:select.share=0.05");
      for (const std::string& setting : asked.settings)
        for (const std::string& value : split(setting.substr(setting.find('=') + 1), '/'))
          if (value.empty())
            return fail(ErrorCode::invalid_argument, flag, " '", item, "': ", setting,
                        " has an empty value (/ parts values; a path goes into --method-set)");
      for (ListedMethod& method : with_each_value(asked)) {
        const auto listed = [&](const auto& other) { return other.label() == method.label(); };
        if (std::any_of(methods.begin(), methods.end(), listed))
          return fail(ErrorCode::invalid_argument, flag, " lists ", method.label(), " twice");
        methods.push_back(std::move(method));
      }
    }
  }
  return methods;
}

}  // namespace thermocline
