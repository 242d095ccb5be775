/* A library of one custom operator, recurra.test:Twice, of one float tensor: y = 2 x.

   ONNX Runtime's wheel brings no header, so what is needed of its C interface is written out here. What has a place in it
   keeps that for good: functions are only added at its end (https://onnxruntime.ai/docs/reference/operators/add-custom-op.html). */

#include <stddef.h>
#include <stdint.h>

typedef void *(*Function)();
typedef struct { const Function *(*api)(uint32_t version); } ApiBase;

enum { VERSION = 8, FLOAT = 1 };
enum {
  CREATE_DOMAIN = 26, ADD_OPERATOR = 27, ADD_DOMAIN = 28, DATA = 51, DIMS_COUNT = 61, DIMS = 62, COUNT = 64, SHAPE = 65,
  INPUT = 90, OUTPUT = 91, RELEASE_SHAPE = 99,
};

typedef struct Operator {
  uint32_t version;
  void *(*create)(const struct Operator *, const Function *, const void *);
  const char *(*name)(const struct Operator *);
  const char *(*provider)(const struct Operator *);
  int (*input_type)(const struct Operator *, size_t);
  size_t (*inputs)(const struct Operator *);
  int (*output_type)(const struct Operator *, size_t);
  size_t (*outputs)(const struct Operator *);
  void (*compute)(void *, void *);
  void (*destroy)(void *);
  int (*input_kind)(const struct Operator *, size_t);
  int (*output_kind)(const struct Operator *, size_t);
  void *what_is_newer[16];
} Operator;

static const Function *api;

static void *create(const Operator *op, const Function *functions, const void *info) { return (void *)op; }
static void destroy(void *kernel) {}
static const char *name(const Operator *op) { return "Twice"; }
static const char *provider(const Operator *op) { return NULL; }
static int type(const Operator *op, size_t place) { return FLOAT; }
static size_t one(const Operator *op) { return 1; }
static int required(const Operator *op, size_t place) { return 0; }

static void compute(void *kernel, void *context) {
  void *input, *output, *shape;
  float *x, *y;
  size_t rank, count;
  int64_t dims[8];
  api[INPUT](context, (size_t)0, &input);
  api[SHAPE](input, &shape);
  api[DIMS_COUNT](shape, &rank);
  api[DIMS](shape, dims, rank);
  api[COUNT](shape, &count);
  api[RELEASE_SHAPE](shape);
  api[OUTPUT](context, (size_t)0, dims, rank, &output);
  api[DATA](input, &x);
  api[DATA](output, &y);
  for (size_t k = 0; k < count; k++) y[k] = 2 * x[k];
}

static const Operator twice = {
  VERSION, create, name, provider, type, one, type, one, compute, destroy, required, required, {NULL},
};

void *RegisterCustomOps(void *options, const ApiBase *base) {
  void *domain, *failed;
  api = base->api(VERSION);
  if ((failed = api[CREATE_DOMAIN]("recurra.test", &domain))) return failed;
  if ((failed = api[ADD_OPERATOR](domain, &twice))) return failed;
  return api[ADD_DOMAIN](options, domain);
}
