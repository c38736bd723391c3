#include "tools/thermocline/method_list.h"

#include <gtest/gtest.h>

namespace thermocline {
namespace {

std::vector<std::string> labels_of(const std::vector<std::string>& lists) {
  const auto methods = parse_method_list(lists, "--method");
  if (!methods) return {methods.error().message};
  std::vector<std::string> labels;
  for (const ListedMethod& method : *methods) labels.push_back(method.label());
  return labels;
}

using Labels = std::vector<std::string>;

TEST(MethodList, IsNamesWithSettings) {
  EXPECT_EQ(labels_of({"exact,sketch", "int8"}), (Labels{"exact", "sketch", "int8"}));
  const auto methods = parse_method_list(
      std::vector<std::string>{"sketch:select.share=0.05:steady.sink=8"}, "--method");
  ASSERT_TRUE(methods && methods->size() == 1);
  EXPECT_EQ(methods->front().name, "sketch");
  EXPECT_EQ(methods->front().settings, (Labels{"select.share=0.05", "steady.sink=8"}));
}

TEST(MethodList, SeveralValuesAreAMethodEach) {
  EXPECT_EQ(labels_of({"sketch:select.share=0.01/0.02,exact"}),
            (Labels{"sketch:select.share=0.01", "sketch:select.share=0.02", "exact"}));
  EXPECT_EQ(labels_of({"a:x.y=1/2:x.z=3/4"}),
            (Labels{"a:x.y=1:x.z=3", "a:x.y=1:x.z=4", "a:x.y=2:x.z=3", "a:x.y=2:x.z=4"}));
}

TEST(MethodList, APathIsAName) {
  const auto methods =
      parse_method_list(std::vector<std::string>{"/a:b/c.conf:select.share=1"}, "--method");
  ASSERT_TRUE(methods);
  EXPECT_EQ(methods->front().name, "/a:b/c.conf");
}

TEST(MethodList, RefusesNoNameAndTheSameTwice) {
  EXPECT_NE(labels_of({":select.share=0.1"}).front().find("a name comes first"), std::string::npos);
  EXPECT_NE(labels_of({"exact", "sketch,exact"}).front().find("exact twice"), std::string::npos);
  for (const char* path : {"a:x.y=/tmp/map", "a:x.y=1/", "a:x.y="})
    EXPECT_NE(labels_of({path}).front().find("a path goes into --method-set"), std::string::npos);
  EXPECT_NE(labels_of({"a:x.y=1/1"}).front().find("a:x.y=1 twice"), std::string::npos);
}

}  // namespace
}  // namespace thermocline
