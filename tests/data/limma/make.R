# The reference of tests/functional/test_moderated_t.py, made once with Bioconductor's limma:
#
#     apt-get install r-bioc-limma    (3.54.1 was used)
#     Rscript make.R                  (in this folder)
#
# A row is a class, a column a run. limma takes observations of one variance a row, so the accuracies
# are multiplied by sqrt(n): its residual variance is then the variance of one image.
library(limma)
options(digits = 17)
set.seed(20260101)

make <- function(name, classes, arms, weights, spread) {
  n <- sample(100:300, classes, replace = TRUE)
  sd <- sqrt(0.09 * spread(classes))
  mean <- runif(classes, 0.3, 0.8)
  runs <- length(arms)
  x <- mean + matrix(rnorm(classes * runs), classes) * sd / sqrt(n)
  design <- model.matrix(~ 0 + factor(arms))
  fit <- lmFit(x * sqrt(n), design)
  fit <- eBayes(contrasts.fit(fit, matrix(weights)))
  result <- data.frame(
    n = n, x, effect = fit$coefficients[, 1] / sqrt(n), t = fit$t[, 1], p = fit$p.value[, 1],
    q = p.adjust(fit$p.value[, 1], "BH"), posterior = fit$s2.post, df = fit$df.total,
    d0 = fit$df.prior, u0 = fit$s2.prior
  )
  write.csv(format(result, digits = 17, trim = TRUE), paste0(name, ".csv"),
            row.names = FALSE, quote = FALSE)
}

chisq <- function(classes) 4 / rchisq(classes, 4)
equal <- function(classes) rep(1, classes)
make("two_arms", 60, rep(0:1, each = 3), c(-1, 1), chisq)
make("unequal_runs", 80, c(0, 0, 0, 1, 1, 1, 1, 1), c(-1, 1), chisq)
s <- c(0, 0.25, 0.5, 1)
make("slope", 70, rep(0:3, each = 2), (s - mean(s)) / sum((s - mean(s))^2), chisq)
set.seed(5)
make("equal_variances", 55, rep(0:1, each = 3), c(-1, 1), equal)

# The trend is not limma's, which has splines: a quadratic by R's lm, then limma's own steps.
set.seed(7)
n <- sample(100:300, 90, replace = TRUE)
mean <- runif(90, 0.05, 0.95)
sd <- sqrt(mean * (1 - mean) * 0.4 * chisq(90))
x <- mean + matrix(rnorm(90 * 6), 90) * sd / sqrt(n)
arms <- rep(0:1, each = 3)
fit <- lmFit(x * sqrt(n), model.matrix(~ 0 + factor(arms)))
middle <- rowMeans(x)
covariate <- log(middle * (1 - middle))
e <- log(fit$sigma^2) - digamma(2) + log(2)
line <- lm(e ~ covariate + I(covariate^2))
v <- summary(line)$sigma^2 - trigamma(2)
d0 <- 2 * trigammaInverse(v)
u0 <- exp(fitted(line) + digamma(d0 / 2) - log(d0 / 2))
posterior <- (d0 * u0 + 4 * fit$sigma^2) / (d0 + 4)
effect <- rowMeans(x[, 4:6]) - rowMeans(x[, 1:3])
t <- effect / sqrt(posterior / n * 2 / 3)
result <- data.frame(
  n = n, x, effect = effect, t = t, p = 2 * pt(-abs(t), d0 + 4), posterior = posterior,
  df = d0 + 4, d0 = d0, u0 = u0
)
write.csv(format(result, digits = 17, trim = TRUE), "trend.csv", row.names = FALSE, quote = FALSE)
