#include "tiers/io/errno_text.h"

#include <cstring>

namespace thermocline {

std::string errno_name(int error) {
  const char* name = strerrorname_np(error);
  return name ? name : "errno " + std::to_string(error);
}

std::string errno_text(int error) {
  const char* words = strerrordesc_np(error);
  return errno_name(error) + " (" + (words ? words : "unknown") + ")";
}

}  // namespace thermocline
