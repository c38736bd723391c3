#include "runtime/model/text_encoder.h"

namespace thermocline {

void append_marked(std::string_view text, std::string* out) {
  for (char c : text) {
    if (c == ' ')
      *out += kSpaceMark;
    else
      out->push_back(c);
  }
}

void append_unmarked(std::string_view text, std::string* out) {
  std::size_t at = 0;
  for (std::size_t mark = text.find(kSpaceMark); mark != std::string_view::npos;
       mark = text.find(kSpaceMark, at)) {
    *out += text.substr(at, mark - at);
    out->push_back(' ');
    at = mark + kSpaceMark.size();
  }
  *out += text.substr(at);
}

}  // namespace thermocline
