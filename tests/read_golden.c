/* Check a depthwise convolution against a golden folder of `effnet-np trace --format bin`: read_golden FOLDER LAYER */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef struct { int n[4]; float *data; } Array;
static Array load(const char *folder, const char *want_kind, const char *want_name) {
    char path[4096], line[4096], kind[16], name[512], file[1024];
    Array a = {{0}, NULL};
    snprintf(path, sizeof path, "%s/index.txt", folder);
    FILE *index = fopen(path, "r"), *raw = NULL; /* a line: kind name dtype layout 4 N C H W file */
    while (index && !raw && fgets(line, sizeof line, index))
        if (sscanf(line, "%15s %511s float32 %*s 4 %d %d %d %d %1023s", kind, name, a.n, a.n + 1, a.n + 2, a.n + 3, file) == 7
            && !strcmp(kind, want_kind) && !strcmp(name, want_name))
            snprintf(path, sizeof path, "%s/%s", folder, file), raw = fopen(path, "rb");
    size_t count = (size_t)a.n[0] * a.n[1] * a.n[2] * a.n[3];
    a.data = malloc(count * sizeof(float));
    if (!raw || !a.data || fread(a.data, sizeof(float), count, raw) != count)
        fprintf(stderr, "cannot read %s %s from %s\n", want_kind, want_name, path), exit(2);
    fclose(raw), fclose(index);
    return a;
}
int main(int argc, char **argv) {
    if (argc != 3) return 2;
    char input[512], weight[512];
    snprintf(input, sizeof input, "%s.0", argv[2]), snprintf(weight, sizeof weight, "%s.weight", argv[2]);
    Array x = load(argv[1], "input", input), w = load(argv[1], "weight", weight), y = load(argv[1], "output", argv[2]);
    int C = y.n[1], OH = y.n[2], OW = y.n[3], H = x.n[2], W = x.n[3], K = w.n[2];
    int stride = OH == H ? 1 : 2, pad = OH == H ? K / 2 : 0; /* for stride 2, a layer of its own has padded the input */
    double error = 0, scale = 0;
    for (int c = 0; c < C; c++) for (int i = 0; i < OH; i++) for (int j = 0; j < OW; j++) {
        float sum = 0, want = y.data[(c * OH + i) * OW + j];
        for (int u = 0; u < K; u++) for (int v = 0, r, s; v < K; v++)
            if ((r = i * stride + u - pad) >= 0 && r < H && (s = j * stride + v - pad) >= 0 && s < W)
                sum += x.data[(c * H + r) * W + s] * w.data[(c * K + u) * K + v];
        error = fmax(error, fabs(sum - want)), scale = fmax(scale, fabs(want));
    }
    printf("%s: %d x %d x %d, largest error %.1e of %.3g\n", argv[2], C, OH, OW, error, scale);
    return scale > 0 && error <= 1e-5 * scale ? 0 : 1;
}
