// Line icons, 20 by 20.
const PATHS = {
  plus: "M10 4v12M4 10h12",
  send: "M10 16V4M5 9l5-5 5 5",
  stop: "M6 6h8v8H6z",
  menu: "M3 5.5h14M3 10h14M3 14.5h14",
  gear: "M3 6h7M14 6h3M3 14h3M10 14h7M10 6a2 2 0 1 0 4 0 2 2 0 1 0-4 0M6 14a2 2 0 1 0 4 0 2 2 0 1 0-4 0",
  copy: "M7.5 7.5h8v9h-8zM12.5 7.5v-4h-8v9h3",
  retry: "M15.5 10a5.5 5.5 0 1 1-1.7-4M15.5 3v3.5H12",
  edit: "M4 16l.8-3.5L13 4.3l2.7 2.7-8.2 8.2z",
  fork: "M6 3v14M6 11c5 0 8-1.5 8-5M11.5 7L14 4.3 16.5 7",
  left: "M12 5l-5 5 5 5",
  right: "M8 5l5 5-5 5",
  close: "M5 5l10 10M15 5L5 15",
  bin: "M4 6h12M8 6V4h4v2M6 6l.7 10h6.6L14 6",
  think: "M7.5 13.5a5 5 0 1 1 5 0V15h-5zM8 17.5h4",
  glass: "M8.5 3.5a5 5 0 1 0 0 10 5 5 0 0 0 0-10M12.2 12.2L17 17",
  tool: "M12.5 3.5a4 4 0 0 0-4 5.3L3.5 14l2.5 2.5 5.2-5a4 4 0 0 0 5.3-4L14 10l-3-1-1-3z",
  down: "M10 4v9M5.5 9L10 13.5 14.5 9M4 16.5h12",
  help: "M7.5 7.5a2.5 2.5 0 1 1 3.5 2.3c-.7.4-1 .8-1 1.7M10 14.5v.1",
};

export const Icon = ({ name }) => (
  <svg class="icon" viewBox="0 0 20 20" width="20" height="20" aria-hidden="true" focusable="false">
    <path d={PATHS[name]} fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round" stroke-linejoin="round" />
  </svg>
);

export const IconButton = ({ icon, label, buttonRef, ...rest }) => (
  <button ref={buttonRef} type="button" class="icon-button" aria-label={label} title={label} {...rest}>
    <Icon name={icon} />
  </button>
);
