/** Logs are JSON lines on standard error, so that standard output stays free for data. */
import pino from 'pino';

export type Logger = pino.Logger;

/** `level`: trace, debug, info, warn, error, fatal or silent. */
export function createLogger(name: string, level: string): Logger {
  return pino(
    { name, level, serializers: { err: pino.stdSerializers.err }, timestamp: pino.stdTimeFunctions.isoTime },
    pino.destination({ dest: 2, sync: true }),
  );
}
