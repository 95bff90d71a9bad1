export { backoffMs, type BackoffOptions } from './backoff';
export { type AskedRange, askedRange, type ByteRange } from './byte-range';
export { ConfigError, readBoolean, readInteger, readLabels, readNumber, readSize, type Env } from './config-value';
export { formatDuration, parseDuration } from './duration';
export {
  canonical, isLabelKey, isLabelValue, type Labels, labelsOfSelector, parseSelector, printSelector, type Requirement, type Selector, SELECTOR_BOUND, SelectorError,
  selectorMatches, selectorOfLabels,
} from './label-selector';
export {
  BundleError, type BundleFile, type BundleManifest, compareVersions, MANIFEST_NAME, parseManifest, parseVersion, type Version,
} from './bundle/manifest';
export { fileDigest, parsePublicKey, type PublicKey, publicKeyOf, SignatureError, signDigest, verifyDigest } from './bundle/minisign';
export { readTar, TAR_END, tarHeader, tarPadding } from './bundle/tar';
export { decompressed, readBundleManifest, unpackBundle, verifyBundle } from './bundle/unpack';
export { type EnrolmentTokenText, parseEnrolmentToken, printEnrolmentToken } from './enrolment-token';
export { COORDINATOR_NAME } from './coordinator-name';
export { fileSha256 } from './file-sha256';
export { type HttpSources, HttpServer } from './http-server';
export { Lifecycle, type Service, runUntilSignal } from './lifecycle';
export { formatAddress, isLoopback, type ListenAddress, parseListenAddress } from './listen-address';
export { createLogger, type Logger } from './log';
export { maxRankAt, type Ranks, strengthOfMaxRank } from './max-rank';
export { AS_THE_TEXT, type OwnMisses, ownMisses, ownMissRate } from './own-misses';
export { readExactly, ShortFileError } from './read-exactly';
export { addSettings, mergeSettings, type Setting } from './setting';
export { formatSize, parseSize } from './size';
export { readOperatorToken, TOKEN_SETTING } from './token-file';
export { VERSION } from './version';
