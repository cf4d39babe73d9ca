// The engine of one build: SCORING_BUILD names it, SCORING_KERNELS is the header with its kernels. See CMakeLists.txt.
#include SCORING_KERNELS

#include "mobilenet.hpp"

namespace scoring {
namespace SCORING_BUILD {

Network* SCORING_FACTORY() { return new MobileNet<Kernels>(); }

}  // namespace SCORING_BUILD
}  // namespace scoring
