export { backoffMs, type BackoffOptions } from './backoff';
export { ConfigError, readBoolean, readInteger, readLabels, readNumber, readSize, type Env } from './config-value';
export { Lifecycle, type Service, runUntilSignal } from './lifecycle';
export { createLogger, type Logger } from './log';
export { mergeSettings, type Setting } from './setting';
export { formatSize, parseSize } from './size';
export { VERSION } from './version';
