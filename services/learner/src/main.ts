/** Builds the learner and runs it until it is told to stop. */
import { ConfigError, createLogger, type Env, Lifecycle, mergeSettings, runUntilSignal } from '@moefleet/runtime';
import { type LearnerConfig, readConfig, SETTINGS, WINDOW_TOKENS } from './config';
import { CoordinatorLink } from './coordinator-link';
import { EvaluationProcess } from './evaluation-process';
import { EvaluationInputError } from './evaluator';
import { JobWorker, type Work } from './job-worker';
import { runLearnerJob } from './learner-job';
import { SubjectCache } from './subject-cache';

export { SETTINGS } from './config';

/** How often those who watch are told. */
const REPORT_EVERY_MS = 1000;
const BAD_INPUT_EXIT_CODE = 2;

/** `flags` by commander's option names. Resolves with the exit code: 2 for settings, model or text that make no sense. */
export async function runLearner(flags: Record<string, unknown>, env: NodeJS.ProcessEnv): Promise<number> {
  let config: LearnerConfig;
  try {
    config = readConfig({ ...mergeSettings(SETTINGS, flags, env as Env), MOEFLEET_TOKEN: env['MOEFLEET_TOKEN'] });
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return refuse(error);
  }
  const log = createLogger('learner', config.logLevel);
  const open = (signal: AbortSignal) => EvaluationProcess.open({
    modelPath: config.modelPath, textPaths: config.textPaths, tokens: config.tokens, context: WINDOW_TOKENS, threads: config.threads,
  }, signal);
  const subjects = new SubjectCache([config.modelPath, ...config.textPaths], open);
  try {
    const subject = await subjects.get(new AbortController().signal);
    log.info({ ...subject, model: config.modelPath, texts: config.textPaths, tokens: config.tokens }, 'model and text read');
  } catch (error) {
    if (error instanceof EvaluationInputError) return refuse(error);
    log.fatal({ err: error }, 'the model cannot be evaluated');
    return 1;
  }

  const link = new CoordinatorLink(config.operatorAddress, config.token, log, Math.random, Date.now, config.caPem);
  const worker: JobWorker = new JobWorker(learnerWork(config, link, subjects, open, (reason) => worker.queueRun(reason), log), { redisUrl: config.redisUrl, redisPrefix: config.redisPrefix, log });
  const lifecycle = new Lifecycle([
    { name: 'coordinator link', start: async () => {}, stop: async () => link.close() },
    worker,
  ], log);
  return runUntilSignal(lifecycle, log);
}

function learnerWork(
  config: LearnerConfig, link: CoordinatorLink, subjects: SubjectCache, open: (signal: AbortSignal) => Promise<EvaluationProcess>,
  queueRun: (reason: string) => void, log: ReturnType<typeof createLogger>,
): Work {
  return (_reason, onProgress, signal) => {
    let reportedMs = 0;
    return runLearnerJob({
      registry: link,
      identify: (wanted) => subjects.get(wanted),
      openEvaluator: open,
      report: (activity, done, total) => {
        const now = Date.now();
        if (activity && now - reportedMs < REPORT_EVERY_MS) return;
        reportedMs = now;
        void link.reportActivity(activity, AbortSignal.timeout(5000));
        onProgress({ activity, done, total });
      },
      queueRun,
      log,
      tokens: config.tokens,
      budget: config.budget,
      budgetRules: config.budgetRules,
      nowMs: Date.now,
    }, signal);
  };
}

function refuse(error: Error): number {
  process.stderr.write(`moefleet learner: ${error.message}\n`);
  return BAD_INPUT_EXIT_CODE;
}
