/* Compute a convolution of a golden folder (`effnet-np trace --format bin --inputs --weights`): read_golden FOLDER LAYER */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef struct { int n[4]; float *data; } Array; /* (N, C, H, W), or (O, C / groups, K, K); a bias (O) is (1, 1, 1, O) */
static Array load(const char *folder, const char *want_kind, const char *want_name, int needed) {
    char path[8192], line[8192], kind[16], name[512], file[1024], *rest = line;
    Array a = {{1, 1, 1, 1}, NULL};
    snprintf(path, sizeof path, "%s/index.txt", folder);
    FILE *index = fopen(path, "r"), *raw = NULL; /* a line: kind name dtype layout dimensions shape file */
    while (index && !raw && fgets(line, sizeof line, index)) {
        int rank = 0, used = 0;
        if (sscanf(line, "%15s %511s float32 %*s %d %n", kind, name, &rank, &used) < 3 || !used || rank < 1 || rank > 4) continue;
        if (strcmp(kind, want_kind) || strcmp(name, want_name)) continue;
        for (rest = line + used; rank > 0; rank--) a.n[4 - rank] = (int)strtol(rest, &rest, 10);
        if (sscanf(rest, "%1023s", file) == 1) snprintf(path, sizeof path, "%s/%s", folder, file), raw = fopen(path, "rb");
    }
    size_t count = (size_t)a.n[0] * a.n[1] * a.n[2] * a.n[3];
    if (raw) a.data = malloc(count * sizeof(float));
    if (needed && (!a.data || fread(a.data, sizeof(float), count, raw) != count))
        fprintf(stderr, "cannot read %s %s from %s\n", want_kind, want_name, path), exit(2);
    if (!needed && a.data && fread(a.data, sizeof(float), count, raw) != count) exit(2);
    if (raw) fclose(raw);
    if (index) fclose(index);
    return a;
}
int main(int argc, char **argv) {
    if (argc != 3 || strlen(argv[2]) > 500) return 2;
    char path[8192], line[8192], name[512], input[512], weight[512], bias[512];
    int K = 0, stride = 0, before = 0, after = 0, groups = 0;
    snprintf(path, sizeof path, "%s/layers.txt", argv[1]);
    FILE *layers = fopen(path, "r"); /* a line: name kind kernel stride pad_before pad_after groups eps activation */
    while (layers && fgets(line, sizeof line, layers))
        if (sscanf(line, "%511s conv %d %d %d %d %d", name, &K, &stride, &before, &after, &groups) != 6) K = 0;
        else if (!strcmp(name, argv[2])) break;
    if (layers) fclose(layers);
    snprintf(input, sizeof input, "%s.0", argv[2]), snprintf(weight, sizeof weight, "%s.weight", argv[2]);
    snprintf(bias, sizeof bias, "%s.bias", argv[2]);
    Array x = load(argv[1], "input", input, 1), w = load(argv[1], "weight", weight, 1), y = load(argv[1], "output", argv[2], 1);
    Array b = load(argv[1], "weight", bias, 0);
    int N = y.n[0], O = y.n[1], OH = y.n[2], OW = y.n[3], C = x.n[1], H = x.n[2], W = x.n[3];
    if (K < 1 || stride < 1 || groups < 1 || C % groups || O % groups || x.n[0] != N || w.n[0] != O || w.n[1] != C / groups
        || w.n[2] != K || w.n[3] != K || (b.data && b.n[3] != O)
        || OH != (H + before + after - K) / stride + 1 || OW != (W + before + after - K) / stride + 1)
        return fprintf(stderr, "%s is no convolution, or layers.txt does not describe it\n", argv[2]), 2;
    double error = 0, scale = 0;
    for (int n = 0; n < N; n++) for (int o = 0; o < O; o++) for (int i = 0; i < OH; i++) for (int j = 0; j < OW; j++) {
        float sum = b.data ? b.data[o] : 0, want = y.data[((n * O + o) * OH + i) * OW + j];
        for (int k = 0, c = o / (O / groups) * (C / groups); k < C / groups; k++, c++)
            for (int u = 0; u < K; u++) for (int v = 0, r, s; v < K; v++)
                if ((r = i * stride + u - before) >= 0 && r < H && (s = j * stride + v - before) >= 0 && s < W)
                    sum += x.data[((n * C + c) * H + r) * W + s] * w.data[((o * (C / groups) + k) * K + u) * K + v];
        error = fmax(error, fabs(sum - want)), scale = fmax(scale, fabs(want));
    }
    printf("%s: %d x %d x %d, largest error %.1e of %.3g\n", argv[2], O, OH, OW, error, scale);
    return scale > 0 && error <= 1e-5 * scale ? 0 : 1;
}
